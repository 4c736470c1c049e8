"""Rows from a real ring to the trainer's store on disk through a real nats-server, tokens/s over a bare pipeline's.

Three processes besides nats-server, as in production: a writer that fills the ring as an engine would
(interleaved requests, 3 aux layers, top-8), the server role's own loop (ring, assembler, encoder,
outbox), and the trainer role's own ingest (pull, check, store, sync, acknowledge). Nothing is
dropped: the writer waits for the ring, the server role for the broker, and the run ends when the
store holds every row. Time counts from the first row to the last one synced.

States are random, scaled per channel so that they compress about as real ones do (1.42x measured on
SmolLM2-135M); the ratio is among the figures. cpu_ms_per_token_* sums the four processes' processor time.

ratio_h* is over the bare pipeline of spine_bare.py, on the same machine in the same run: states of the same shape
encoded, published, pulled and decoded, and nothing else. The two sizes and the two pipelines are measured in turn,
several times, and medians count; of the ratio, the median of those of neighbours in time. over_51000_h576 and
over_7100_h4096 are over what such a pipeline reached on the machine where the spine was designed.
"""

import asyncio
import multiprocessing
import os
import queue
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benches import spine_bare
from benches.settings import Settings
from tide_daemon import log
from tide_daemon.bus.connection import ConnectSettings
from tide_daemon.bus.embedded import EmbeddedServer, EmbeddedSettings
from tide_daemon.bus.jetstream import JetStreamBus
from tide_daemon.bus.topology import TRAINERS, Topology, TopologyLimits, build_topology
from tide_daemon.engine.assemble import Assembler
from tide_daemon.engine.port import CaptureSettings, DraftState, EngineStats
from tide_daemon.engine.ring import RingReader, RingWriter, Rows
from tide_daemon.engine.ring_layout import FLAG_GENERATED, FLAG_LAST, FLAG_TOPK, RingLayout
from tide_daemon.roles.server import ServerRole, ServerSettings
from tide_daemon.roles.target_spec import SpecKeeper
from tide_daemon.roles.trainer_ingest import Ingest
from tide_daemon.trainer.settings import TrainerSettings
from tide_daemon.wire.records import HiddenChunk, TargetSpec
from tide_daemon.wire.tensors import rows_per_chunk

REFERENCE = {576: 51_000.0, 4096: 7_100.0}
"""Tokens/s of a bare pipeline on the machine where the spine was designed, by hidden size."""
NUM_LAYERS = 3
TOPK = 8
VOCAB = 49_152
NUM_REQUESTS = 16
REQUEST_ROWS = 512
ROWS_PER_STEP = 4
RING_BYTES = 256 << 20
TAKE_BYTES = 16 << 20
CHUNK_BYTES = ServerSettings.__dataclass_fields__["chunk_bytes"].default
LIMIT_S = 300.0
STALL_S = 30.0


def run(settings: Settings) -> dict[str, float]:
    """Measure both sizes in turn; see the module docstring."""
    seconds = settings.number("seconds", 10.0)
    rounds = settings.integer("rounds", 5)
    codec = settings.text("codec", "bf16-planes")
    measured: dict[int, list[dict[str, float]]] = {hidden: [] for hidden in REFERENCE}
    for number in range(rounds):
        for hidden, reference in REFERENCE.items():
            step = NUM_REQUESTS * ROWS_PER_STEP
            num_rows = int(seconds * reference / (NUM_REQUESTS * REQUEST_ROWS)) * NUM_REQUESTS * REQUEST_ROWS
            num_rows = max(num_rows, 128 * step)
            result = measure(settings.work_dir / f"{hidden}-{number}", hidden, num_rows, codec)
            result["bare_tokens_s"] = _bare(settings.work_dir / f"bare-{hidden}-{number}", hidden, num_rows)
            measured[hidden].append(result)
            both = f"{result['tokens_s']:.0f} tokens/s, bare {result['bare_tokens_s']:.0f}"
            print(f"hidden {hidden}: {both}", file=sys.stderr)
    figures: dict[str, float] = {}
    for hidden, results in measured.items():
        middle = {name: statistics.median(result[name] for result in results) for name in results[0]}
        figures[f"ratio_h{hidden}"] = statistics.median(one["tokens_s"] / one["bare_tokens_s"] for one in results)
        figures[f"over_{REFERENCE[hidden]:.0f}_h{hidden}"] = middle["tokens_s"] / REFERENCE[hidden]
        figures |= {f"{name}_h{hidden}": value for name, value in middle.items()}
    return figures


def _bare(folder: Path, hidden: int, num_rows: int) -> float:
    """Tokens/s of the bare pipeline, with as many rows a message as a chunk holds."""
    width = NUM_LAYERS * hidden
    per_message = rows_per_chunk(CHUNK_BYTES, width, TOPK, "bf16-planes")
    states = np.concatenate(
        [_step(width, number)["aux"] for number in range(1 + 4 * per_message // (NUM_REQUESTS * ROWS_PER_STEP))]
    )
    messages = [states[at * per_message : (at + 1) * per_message] for at in range(4)]
    return spine_bare.tokens_per_s(folder, messages, num_rows // per_message)


def measure(folder: Path, hidden: int, num_rows: int, codec: str) -> dict[str, float]:
    """One run of `num_rows` rows with everything fresh."""
    return asyncio.run(_measure(folder, hidden, num_rows, codec))


async def _measure(folder: Path, hidden: int, num_rows: int, codec: str) -> dict[str, float]:
    topology = _topology(hidden, num_rows)
    context = multiprocessing.get_context("spawn")
    server = EmbeddedServer(EmbeddedSettings(folder / "nats", topology.max_bytes), told=print)
    url = await server.start()
    # The ring's directory is memory, as in production; its name is free because it is new.
    with tempfile.TemporaryDirectory(prefix="tide-bench-", dir="/dev/shm") as memory:
        ring = Path(memory) / "bench.ring"
        answers = context.Queue()
        ready = context.Barrier(4)
        children = [
            context.Process(target=target, args=arguments, daemon=True)
            for target, arguments in (
                (write_rows, (ring, hidden, num_rows, ready, answers)),
                (serve, (folder / "server", ring, url, hidden, codec, ready, answers)),
                (train, (folder / "trainer", url, hidden, num_rows, ready, answers)),
            )
        ]
        try:
            bus = await JetStreamBus.connect(ConnectSettings((url,), "bench"), topology)
            await bus.ensure()
            await bus.close()
            for child in children:
                child.start()
            await asyncio.to_thread(ready.wait, LIMIT_S)
            broker_before = _cpu_s(server.pid)
            results = await _answers(answers, {"write", "train"}, children)
            broker_s = _cpu_s(server.pid) - broker_before
            # The trainer has the last row; now the server role may end.
            children[1].terminate()
            results |= await _answers(answers, {"serve"}, children)
        finally:
            for child in children:
                if child.is_alive():
                    child.terminate()
                if child.pid is not None:
                    child.join(10)
            await server.stop()
    elapsed_s = results["train"]["ended"] - results["write"]["began"]
    cpu_s = broker_s + sum(results[name]["cpu_s"] for name in ("write", "serve", "train"))
    return {
        "tokens_s": num_rows / elapsed_s,
        "cpu_ms_per_token": 1000 * cpu_s / num_rows,
        "cpu_share_writer": results["write"]["cpu_s"] / elapsed_s,
        "cpu_share_server": results["serve"]["cpu_s"] / elapsed_s,
        "cpu_share_broker": broker_s / elapsed_s,
        "cpu_share_trainer": results["train"]["cpu_s"] / elapsed_s,
        "compression": num_rows * hidden * NUM_LAYERS * 2 / results["train"]["num_bytes"],
    }


async def _answers(answers: Any, wanted: set[str], children: Sequence[Any]) -> dict[str, Any]:
    """What the children report; RuntimeError as soon as one of them has died."""
    results: dict[str, Any] = {}
    give_up_at = time.monotonic() + LIMIT_S
    while wanted - set(results):
        try:
            results |= await asyncio.to_thread(answers.get, True, 0.5)
        except queue.Empty:
            dead = [child for child in children if child.exitcode not in (None, 0)]
            if dead or time.monotonic() > give_up_at:
                raise RuntimeError(f"no answer from {wanted - set(results)}; ended early: {dead}") from None
    return results


def _topology(hidden: int, num_rows: int) -> Topology:
    # Room for every row, so that a slow reader costs time and not rows.
    return build_topology(TopologyLimits(hidden_max_bytes=(64 << 20) + 2 * num_rows * (hidden * NUM_LAYERS * 2 + 64)))


def _spec(hidden: int) -> TargetSpec:
    return TargetSpec("bench", "0" * 64, "0" * 64, (2, 15, 27), hidden, VOCAB)


def _cpu_s(pid: int | None) -> float:
    """Processor time of a process so far, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100.0


def write_rows(path: Path, hidden: int, num_rows: int, ready: Any, answers: Any) -> None:
    """The engine's side: steps of a batch of requests, written as fast as the ring takes them."""
    width = NUM_LAYERS * hidden
    writer = RingWriter(path, RingLayout.for_bytes(RING_BYTES, width, TOPK))
    # Enough different ones that no chunk holds a row twice: zstd would find it.
    steps = [_step(width, number) for number in range(2 + CHUNK_BYTES // (2 * width * ROWS_PER_STEP))]
    ready.wait(LIMIT_S)
    began, cpu = time.monotonic(), time.process_time()
    written = position = life = number = 0
    while written < num_rows:
        rows = steps[number % len(steps)]
        number += 1
        count = len(rows["token_id"])
        while writer.free_slots() < count:
            time.sleep(0.001)
        rows["position"][:] = position + np.tile(np.arange(ROWS_PER_STEP), NUM_REQUESTS)
        rows["request"][:, 0] = np.repeat(np.arange(NUM_REQUESTS), ROWS_PER_STEP)
        rows["request"][:, 1] = life
        rows["captured_at"][:] = time.time()
        position += ROWS_PER_STEP
        rows["flags"][:] = FLAG_GENERATED | FLAG_TOPK
        if position == REQUEST_ROWS:
            rows["flags"][ROWS_PER_STEP - 1 :: ROWS_PER_STEP] |= FLAG_LAST
            position, life = 0, life + 1
        written += writer.write(rows)
    answers.put({"write": {"began": began, "cpu_s": time.process_time() - cpu, "dropped": writer.num_dropped}})
    time.sleep(LIMIT_S)  # holds the ring until terminated


def _step(width: int, number: int) -> Rows:
    """Rows of one step: every request's tokens, one request after the other."""
    random = np.random.default_rng(number)
    count = NUM_REQUESTS * ROWS_PER_STEP
    scales = np.exp(np.random.default_rng(0).normal(0.0, 0.5, width))
    states = (random.normal(0.0, 1.0, (count, width)) * scales).astype(np.float32)
    return {
        "aux": (states.view(np.uint32) >> 16).astype(np.uint16),
        "token_id": random.integers(0, VOCAB, count, np.int32),
        "next_token_id": random.integers(0, VOCAB, count, np.int32),
        "position": np.zeros(count, np.int32),
        "flags": np.zeros(count, np.uint16),
        "label": np.zeros(count, np.uint16),
        "topk_ids": random.integers(0, VOCAB, (count, TOPK), np.int32),
        "topk_logprobs": -np.sort(random.gamma(1.0, 3.0, (count, TOPK))).astype(np.float16),
        "request": np.zeros((count, 2), np.uint64),
        "draft_version": np.zeros(count, np.int64),
        "captured_at": np.zeros(count, np.float64),
    }


class RingEngine:
    """engine/port.Engine over a ring alone: no engine process behind it to command."""

    def __init__(self, ring: RingReader, spec: TargetSpec, codec: str) -> None:
        self.spec = spec
        self._ring = ring
        self._assembler = Assembler(spec, "bench", codec)

    async def start(self) -> None:
        return

    async def stop(self, deadline_s: float) -> None:
        return

    async def stats(self) -> EngineStats:
        return EngineStats(
            "ready",
            1,
            DraftState(0, ""),
            NUM_REQUESTS,
            (),
            True,
            self._ring.num_written,
            self._ring.num_dropped,
            0,
            0,
            1,
        )

    async def swap(self, checkpoint_dir: str, state: DraftState) -> DraftState:
        return state

    async def set_steps(self, table: Sequence[tuple[int, int]]) -> None:
        return

    async def set_capture(self, settings: CaptureSettings) -> None:
        return

    def take_chunks(self, max_bytes: int) -> list[HiddenChunk]:
        most = TAKE_BYTES // (2 * self._ring.layout.aux_width)
        if self._ring.waiting():
            self._assembler.add(self._ring.take(most), self._ring.labels(), time.monotonic(), max_bytes)
        self._assembler.flush_old(time.monotonic())
        return self._assembler.take_ready()


def _keep_log(folder: Path) -> None:
    """Write a role's log as a service does: JSON lines, which somebody else keeps."""
    folder.mkdir(parents=True)
    with (folder / "log.jsonl").open("wb") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
    log.configure(format="json")


def serve(folder: Path, path: Path, url: str, hidden: int, codec: str, ready: Any, answers: Any) -> None:
    """The server role on the ring, until SIGTERM."""
    _keep_log(folder)
    while not path.exists():
        time.sleep(0.01)
    asyncio.run(_serve(path, url, hidden, codec, ready, answers))


async def _serve(path: Path, url: str, hidden: int, codec: str, ready: Any, answers: Any) -> None:
    bus = await JetStreamBus.connect(ConnectSettings((url,), "bench server"), build_topology(TopologyLimits()))

    async def no_draft(spec: TargetSpec, version: int, digest: str) -> Path:
        raise AssertionError("nobody asks for a draft here")

    with RingReader(path) as ring:
        role = ServerRole(bus, RingEngine(ring, _spec(hidden), codec), no_draft, ServerSettings("bench"))
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(15, stop.set)
        await asyncio.to_thread(ready.wait, LIMIT_S)
        cpu = time.process_time()
        await role.run(stop)
    await bus.close()
    answers.put({"serve": {"cpu_s": time.process_time() - cpu}})


def train(folder: Path, url: str, hidden: int, num_rows: int, ready: Any, answers: Any) -> None:
    """The trainer role's ingest, until the store holds every row."""
    _keep_log(folder)
    asyncio.run(_train(folder, url, hidden, num_rows, ready, answers))


async def _train(folder: Path, url: str, hidden: int, num_rows: int, ready: Any, answers: Any) -> None:
    bus = await JetStreamBus.connect(ConnectSettings((url,), "bench trainer"), build_topology(TopologyLimits()))
    await (await bus.puller(TRAINERS)).close()
    specs = SpecKeeper(folder, "bench", "")
    settings = TrainerSettings(name="bench", model="bench", draft_vocab_size=1024, store_max_bytes=64 << 30)
    ingest = Ingest(bus, settings, folder / "store", specs, time.time)
    await asyncio.to_thread(ready.wait, LIMIT_S)
    cpu = time.process_time()
    running = asyncio.create_task(ingest.run())
    seen, seen_at = 0, time.monotonic()
    while ingest.stats.num_tokens < num_rows:
        await asyncio.sleep(0.01)
        if ingest.stats.num_tokens > seen:
            seen, seen_at = ingest.stats.num_tokens, time.monotonic()
        if running.done() or time.monotonic() - seen_at > STALL_S:
            raise RuntimeError(f"{seen} of {num_rows} rows came; refused {ingest.refused}, store {ingest.counters()}")
    ended = time.monotonic()
    result = {"ended": ended, "cpu_s": time.process_time() - cpu, "num_bytes": ingest.stats.num_bytes}
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    ingest.close()
    await bus.close()
    answers.put({"train": result})

"""Faults of the trainer."""

import asyncio
import math
import os
import resource
import signal
import time
from dataclasses import replace

import numpy as np
from demo_run.stack import MODEL

from fault_runs import hostile
from fault_runs.observer import decoded
from fault_runs.run import Inflicting
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.records import TrainerReport

ROUND_LIMIT_S = 300.0


async def trainer_killed(run: Inflicting) -> None:
    run.expect_restart("trainer")
    run.stage.kill("trainer")
    await asyncio.sleep(5.0)
    await run.stage.start_role("trainer")
    run.over()


async def trainer_killed_in_fetch(run: Inflicting) -> None:
    stage, struck = run.stage, asyncio.Event()

    def strike() -> None:
        stage.kill("trainer")
        struck.set()

    run.expect_restart("trainer")
    stage.relays["trainer"].strike("received", rb"H?MSG [^\r\n]*\$JS\.ACK\.TIDE_HIDDEN\.trainers[^\r\n]*\r\n", strike)
    await run.until("a chunk comes", lambda: _set(struck), 60.0)
    await asyncio.sleep(2.0)
    await stage.start_role("trainer")
    run.over()


async def trainer_worker_killed_in_step(run: Inflicting) -> None:
    stage = run.stage
    await stage.train(True)
    await run.until("a round trains", lambda: _in_step(run), ROUND_LIMIT_S)
    shown = await stage.role("trainer")
    _expect_worker(run, shown["worker_starts"])
    os.kill(int(shown["worker_pid"]), signal.SIGKILL)
    run.over()
    await _published(run, int(shown["round"]), shown["candidates_published"])


async def trainer_killed_in_step(run: Inflicting) -> None:
    stage = run.stage
    await stage.train(True)
    await run.until("a round trains", lambda: _in_step(run), ROUND_LIMIT_S)
    number = int((await stage.role("trainer"))["round"])
    run.expect_restart("trainer")
    stage.kill("trainer")
    await asyncio.sleep(2.0)
    await stage.start_role("trainer")
    run.over()
    await _published(run, number, 0)


async def trainer_killed_in_parts(run: Inflicting) -> None:
    stage = run.stage
    held = stage.nats.max_payload
    if stage.engine == "modelled":  # its drafts are so small that they come in one part
        stage.nats.max_payload = 24 * 1024
        await asyncio.to_thread(stage.nats.reload)
        stage.relays["trainer"].break_off()  # a client learns the limit as it connects
    await _killed_at(run, rb"H?PUB tide\.v1\.draft\.[^ \r\n]+\.00001 [^\r\n]*\r\n")
    stage.nats.max_payload = held
    await asyncio.to_thread(stage.nats.reload)


async def trainer_killed_before_manifest(run: Inflicting) -> None:
    await _killed_at(run, rb"H?PUB tide\.v1\.draft\.[^ \r\n]+\.manifest [^\r\n]*\r\n")


async def _killed_at(run: Inflicting, pattern: bytes) -> None:
    """Kill the trainer as it sends a message; what comes before that message has reached the broker."""
    stage, struck = run.stage, asyncio.Event()

    def strike() -> None:
        stage.kill("trainer")
        struck.set()

    stage.relays["trainer"].strike("sent", pattern, strike)
    await stage.train(True)
    if not await run.until("it publishes", lambda: _set(struck), ROUND_LIMIT_S):
        return
    run.expect_restart("trainer")
    await asyncio.sleep(2.0)
    claims = await _claims(run)
    await stage.start_role("trainer")
    run.over()

    async def completed() -> bool:
        return max(claims) in await run.observer.manifests()

    await run.until(f"version {max(claims)} is completed under its number", completed, ROUND_LIMIT_S)
    await stage.train(False)


async def trainer_out_of_memory(run: Inflicting) -> None:
    stage = run.stage
    await stage.train(True)
    await run.until("a round trains", lambda: _in_step(run), ROUND_LIMIT_S)
    shown = await stage.role("trainer")
    _expect_worker(run, shown["worker_starts"])
    pid = int(shown["worker_pid"])
    # Less than it has: every further mapping is refused, as by a full machine with strict overcommit.
    resource.prlimit(pid, resource.RLIMIT_AS, (1 << 20, resource.RLIM_INFINITY))

    async def gone_or_on() -> bool:
        now = await stage.role("trainer")
        return (
            now["worker_starts"] > shown["worker_starts"] or now["round"] > shown["round"] or now["state"] == "failed"
        )

    if not await run.until("the worker meets the limit", gone_or_on, 60.0):
        run.notes["note"] = "the worker allocated nothing new; killed as the kernel would"
        os.kill(pid, signal.SIGKILL)
    run.over()
    await _published(run, int(shown["round"]), shown["candidates_published"])


async def trainer_disk_full(run: Inflicting) -> None:
    stage = run.stage
    run.expect_unwell("trainer", "trainer.store")
    ballast = await asyncio.to_thread(stage.fill, stage.folder / "trainer")
    floor = (await stage.consumer())["ack_floor"]["stream_seq"]
    await asyncio.sleep(10.0)
    first = (await stage.consumer())["ack_floor"]["stream_seq"]
    await asyncio.sleep(10.0)
    second = (await stage.consumer())["ack_floor"]["stream_seq"]
    run.notes["acknowledged_meanwhile"] = [floor, first, second]
    run.check("nothing is acknowledged while the disk is full", first == second)
    ballast.unlink()
    run.over()


async def trainer_nan_loss(run: Inflicting) -> None:
    stage = run.stage
    good = [hostile.chunk(stage.spec, 700 + number, rows=64, node="demo-server") for number in range(12)]
    # The largest that bf16 holds.
    bad = [replace(chunk, aux=np.full_like(chunk.aux, 0x7F7F)) for chunk in good]
    run.observer.hostile |= {(chunk.request_id, chunk.chunk_index) for chunk in bad}
    run.expect(
        "they are refused",
        "trainer",
        lambda status: status["roles"]["trainer"]["snapshot"]["refused"]["too_large"] >= len(bad),
        lambda metrics: metrics["tide_refused_total{too_large}"] >= len(bad),
    )
    async with stage.bus() as bus:
        for chunk in bad:
            await bus.publish(subjects.subject_of(MODEL, chunk), envelope.encode(chunk))
    run.over()
    await stage.train(True)
    before = (await stage.role("trainer"))["candidates_published"]

    async def trained() -> bool:
        shown = await stage.role("trainer")
        return bool(shown["candidates_published"] > before and math.isfinite(shown["loss"]))

    await run.until("a round is trained and published", trained, ROUND_LIMIT_S)
    await stage.train(False)


async def trainer_clock_jumps_a_day(run: Inflicting) -> None:
    stage = run.stage
    offset = stage.folder / "clock-offset"
    offset.write_text("0")
    folder = stage.folder / "clock"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(_CLOCK)
    inherited = os.environ.get("PYTHONPATH", "")
    stage.environments["trainer"] = {"PYTHONPATH": f"{folder}:{inherited}", "FAULT_CLOCK": str(offset)}
    await stage.end("trainer")
    await stage.start_role("trainer")
    await run.until("the trainer is ready", stage.all_ready, 90.0)
    held = (await stage.role("trainer"))["num_requests"]
    run.expect(
        "the trainer is still reported",
        "controller",
        lambda status: status["roles"]["controller"]["snapshot"]["num_trainers"] >= 1,
        lambda metrics: metrics["tide_trainers"] >= 1,
    )
    offset.write_text("86400")
    await asyncio.sleep(20.0)
    run.check("the clock has jumped", await _reported_at(run) > time.time() + 80_000)
    shown = await stage.role("trainer")
    run.check(f"nothing is deleted: {shown['num_requests']} of {held} requests", shown["num_requests"] >= held)
    run.check("the controller sees it", (await stage.role("controller"))["num_trainers"] >= 1)
    offset.write_text("0")
    await asyncio.sleep(5.0)
    run.check("the clock is right again", abs(await _reported_at(run) - time.time()) < 60)
    stage.environments.pop("trainer")
    await stage.end("trainer")
    await stage.start_role("trainer")
    run.over()


async def two_trainers_one_name(run: Inflicting) -> None:
    stage = run.stage
    stage.changes["trainer-2"] = {"node": {"name": "demo-trainer"}}
    await stage.start_role("trainer", "trainer-2")
    await run.until("the second one is ready", lambda: _second_ready(run), 90.0)
    run.expect(
        "the second one stores samples too",
        "trainer-2",
        lambda status: status["roles"]["trainer"]["snapshot"]["num_requests"] > 0,
        lambda metrics: metrics["tide_store_requests"] > 0,
    )
    await stage.train(True)
    names = ("trainer", "trainer-2")
    before = {name: (await stage.role(name))["candidates_published"] for name in names}

    async def both_published() -> bool:
        return all([(await stage.role(name))["candidates_published"] > before[name] for name in names])

    await run.until("both publish drafts", both_published, ROUND_LIMIT_S)
    await stage.end("trainer-2")
    stage.roles.pop("trainer-2")
    run.over()
    await stage.train(False)


_CLOCK = '''
"""The wall clock of this process, moved by as many seconds as a file says."""
import os, time

_real, _path = time.time, os.environ.get("FAULT_CLOCK", "")

def _moved():
    try:
        with open(_path) as file:
            return _real() + float(file.read() or 0)
    except (OSError, ValueError):
        return _real()

if _path:
    time.time = _moved
'''


def _expect_worker(run: Inflicting, starts: int) -> None:
    run.expect(
        "another worker is started",
        "trainer",
        lambda status: status["roles"]["trainer"]["snapshot"]["worker_starts"] > starts,
        lambda metrics: True,  # no metric counts workers; that a round is late shows in tide_round_step
    )


async def _published(run: Inflicting, number: int, before: int) -> None:
    """The round comes to its end, then no further one is asked for."""
    folder = run.stage.folder / "trainer" / "trainer" / "rounds" / f"{number:08d}"

    async def ended() -> bool:
        return (folder / "published.json").exists() or not folder.exists()

    await run.until(f"round {number} is published", ended, ROUND_LIMIT_S)
    run.check("it was not given up", not (folder / "failed.json").exists())
    await run.stage.train(False)


async def _in_step(run: Inflicting) -> bool:
    shown = await run.stage.role("trainer")
    return bool(shown["state"] == "training" and shown["step"] > 0 and shown["worker_pid"])


async def _claims(run: Inflicting) -> list[int]:
    found = []
    async with run.stage.bus() as bus:
        for version in range(1, 10_000):
            if await bus.last(subjects.draft_claim(MODEL, version)) is None:
                break
            found.append(version)
    return found


async def _reported_at(run: Inflicting) -> float:
    """When the trainer made its newest report, by its own clock."""
    async with run.stage.bus() as bus:
        message = await bus.last(subjects.report(MODEL, "demo-trainer", "trainer"))
    record = decoded(message) if message is not None else None
    return record.at if isinstance(record, TrainerReport) else 0.0


async def _second_ready(run: Inflicting) -> bool:
    return bool((await run.stage.status("trainer-2")).get("ready"))


async def _set(event: asyncio.Event) -> bool:
    return event.is_set()

"""Hostile and damaged data on the real subjects."""

import asyncio
import functools
import json
import time
from collections.abc import Iterable
from pathlib import Path

import psutil
import torch
from demo_run.stack import MODEL

from fault_runs import hostile
from fault_runs.run import Inflicting
from tide_daemon.bus.port import Bus
from tide_daemon.draft import checkpoint, delta
from tide_daemon.draft.checkpoint import Checkpoint, tensor_digests
from tide_daemon.draft.config import config_for_target
from tide_daemon.errors import BusConflictError
from tide_daemon.policy.settings import PolicySettings
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.records import (
    DraftClaim,
    DraftManifest,
    DraftPart,
    HiddenChunk,
    Record,
    RequestScore,
    TensorEntry,
)
from tide_daemon.wire.weights import split_parts

GROWTH_BYTES = 64 << 20
_SPREAD = 48
_PART_BYTES = 1 << 18


async def bits_flipped_in_every_field(run: Inflicting) -> None:
    records = hostile.examples(run.stage.spec, time.time())
    messages = [
        message
        for record in records
        for made in (hostile.flipped(record, MODEL, _SPREAD), hostile.cut_short(record, MODEL, _SPREAD // 2))
        for message in made
    ]
    await _publish_and_look(run, messages, "damaged")


async def valid_envelope_wrong_fields(run: Inflicting) -> None:
    records = hostile.examples(run.stage.spec, time.time())
    await _publish_and_look(run, [m for record in records for m in hostile.wrong_fields(record, MODEL)], "damaged")


async def malicious_size(run: Inflicting) -> None:
    records = hostile.examples(run.stage.spec, time.time())
    await _publish_and_look(run, list(hostile.oversized(records, MODEL)), "damaged", growth=True)


async def compression_bomb(run: Inflicting) -> None:
    records = hostile.examples(run.stage.spec, time.time())
    messages = await asyncio.to_thread(lambda: list(hostile.bombs(records, MODEL)))
    await _publish_and_look(run, messages, "damaged", growth=True)


async def old_schema(run: Inflicting) -> None:
    records = hostile.examples(run.stage.spec, time.time())
    messages = [hostile.of_version(record, MODEL, version) for record in records for version in (0, 2)]
    await _publish_and_look(run, messages, "damaged")
    log = run.stage.roles["trainer"].log.read_text(errors="replace")
    run.check("the trainer's log says to update the older side", "update the older side" in log)


async def chunk_of_another_model(run: Inflicting) -> None:
    # A chunk on a subject that is not its own is damage; one on its own subject is another target.
    spec = hostile.of_spec(run.stage.spec, model="another-model")
    chunks = [hostile.chunk(spec, 100 + number) for number in range(10)]
    wrong = [(subjects.hidden(MODEL, chunk.node), envelope.encode(chunk)) for chunk in chunks]
    await _publish_and_look(run, wrong, "damaged")
    other = hostile.of_spec(run.stage.spec, target_fingerprint="e" * 64)
    await _refused(run, [hostile.chunk(other, 200 + number) for number in range(10)], "other_target_fingerprint")


async def chunk_of_other_layers(run: Inflicting) -> None:
    layers = tuple(layer + 1 for layer in run.stage.spec.aux_layer_ids)
    spec = hostile.of_spec(run.stage.spec, aux_layer_ids=layers)
    await _refused(run, [hostile.chunk(spec, 300 + number) for number in range(10)], "other_aux_layer_ids")


async def chunk_of_another_vocabulary(run: Inflicting) -> None:
    spec = hostile.of_spec(run.stage.spec, vocab_hash="d" * 64)
    await _refused(run, [hostile.chunk(spec, 400 + number) for number in range(10)], "other_vocab_hash")


async def manifest_without_base(run: Inflicting) -> None:
    held = _served(run)
    config, tensors = held.config, dict(held.tensors)
    async with run.stage.bus() as bus:
        version = await _claim(bus, "f" * 64)
        await _publish_draft(run, bus, version, Checkpoint(config, tensors, "f" * 64), base=(version + 50, "b" * 64))
    await _never_runs(run, version, 60.0)


async def parts_truncated_duplicated_reordered(run: Inflicting) -> None:
    for seed, order in enumerate(("truncated", "duplicated", "reordered")):
        folder = run.stage.folder / f"draft-{order}"
        made = await asyncio.to_thread(_random_draft, run, folder, seed)
        async with run.stage.bus() as bus:
            version = await _claim(bus, made.digest)
            await _publish_draft(run, bus, version, made, order=order)
        if order == "truncated":
            await _never_runs(run, version, 60.0)
        else:
            await run.until(f"the {order} draft runs for a while", functools.partial(_runs, run, version), 60.0)
        await run.until("the fleet is steady again", run.stage.is_converged, 180.0)


async def draft_loads_but_is_wrong(run: Inflicting) -> None:
    # What trying may cost is bounded, and on a slow machine the first draft has spent it: without more nothing would
    # be drafted with this one for minutes.
    await run.stage.control(probe_share=0.1)
    made = await asyncio.to_thread(_random_draft, run, run.stage.folder / "draft-wrong", 77)
    async with run.stage.bus() as bus:
        version = await _claim(bus, made.digest)
        await _publish_draft(run, bus, version, made, accept_length=3.8)
    run.expect(
        "the server runs it",
        "server",
        lambda status: status["roles"]["server"]["snapshot"]["draft_version"] == version,
        lambda metrics: metrics["tide_draft_version"] == version,
    )
    if not await run.until("it is promoted and runs", lambda: _runs(run, version), 120.0):
        return

    async def tried() -> bool:
        return any(
            report.running_version == version and any(each.num_steps and each.num_verifies for each in report.steps)
            for report in run.observer.reports
        )

    if not await run.until("something is drafted with it", tried, 180.0):
        return
    since = time.monotonic()

    async def harmless() -> bool:
        """It was rolled back, or nothing is drafted with it."""
        server, controller = await run.stage.role("server"), await run.stage.role("controller")
        if server["draft_version"] != version:
            return bool(controller["serving_version"] != version)
        return bool(server["num_steps"] == 0)

    await run.until("it is rolled back or switched off", harmless, 60.0)
    run.notes["harmless_after_s"] = round(time.monotonic() - since, 1)
    run.over()
    await run.stage.control(probe_share=PolicySettings().probe_share)
    run.notes["served"] = (await run.stage.role("controller"))["serving_version"] == version


async def _runs(run: Inflicting, version: int) -> bool:
    return bool((await run.stage.role("server"))["draft_version"] == version)


async def _publish_and_look(
    run: Inflicting, messages: list[hostile.Message], reason: str, *, growth: bool = False
) -> None:
    """Put raw messages on the bus; the trainer must count those for it, nothing else may change."""
    stage = run.stage
    before = await _state(run)
    grown = _sizes(run)
    num_chunks = sum(".hidden." in subject for subject, _ in messages)
    counted = (await stage.role("trainer"))["refused"].get(reason, 0)
    run.notes["messages"] = len(messages)

    def refused(number: object) -> bool:
        return isinstance(number, int | float) and number >= counted + num_chunks

    run.expect(
        f"{num_chunks} chunks refused as {reason}",
        "trainer",
        lambda status: refused(status["roles"]["trainer"]["snapshot"]["refused"][reason]),
        lambda metrics: refused(metrics[f"tide_refused_total{{{reason}}}"]),
    )
    async with stage.bus() as bus:
        await _put_raw(run, bus, messages)
        await run.seen(60.0)
        await _remove(bus)
    run.over()
    _compare(run, before, await _state(run))
    if growth:
        for name, (old, new) in {name: (grown[name], size) for name, size in _sizes(run).items()}.items():
            run.check(f"{name} grew by {(new - old) >> 20} MiB", new - old < GROWTH_BYTES)


async def _put_raw(run: Inflicting, bus: Bus, messages: Iterable[hostile.Message]) -> None:
    limit = bus.max_payload
    skipped = 0
    for subject, data in messages:
        if len(data) > limit:
            skipped += 1
            continue
        await bus.publish(subject, data)
    run.notes["too_large_for_the_broker"] = skipped


async def _remove(bus: Bus) -> None:
    """Take damaged messages off the streams that keep them, as an operator would once the cause is found."""
    for subject in (
        subjects.all_of_draft(MODEL, hostile.VERSION),
        subjects.control_server(MODEL, hostile.NODE),
        subjects.control_trainer(MODEL, hostile.TRAINER),
    ):
        await bus.purge(subject)


async def _refused(run: Inflicting, chunks: list[HiddenChunk], reason: str) -> None:
    run.observer.hostile |= {(chunk.request_id, chunk.chunk_index) for chunk in chunks}
    messages = [(subjects.subject_of(chunk.spec.model, chunk), envelope.encode(chunk)) for chunk in chunks]
    await _publish_and_look(run, messages, reason)


async def _state(run: Inflicting) -> dict[str, object]:
    server, controller = await run.stage.role("server"), await run.stage.role("controller")
    return {
        "draft": (server["draft_version"], server["num_swaps"], server["engine_starts"]),
        "serving": controller["serving_version"],
        "leader": controller["fencing_token"],
        "nodes": controller["num_nodes"],
        "processes": {name: child.popen.pid for name, child in run.stage.roles.items() if child.running},
        "failures": {
            name: [view["num_failures"] for view in (await run.stage.status(name))["roles"].values()]
            for name in run.stage.roles
        },
    }


def _compare(run: Inflicting, before: dict[str, object], after: dict[str, object]) -> None:
    for name, value in before.items():
        run.check(f"{name} was {value}, is {after[name]}", after[name] == value)


def _sizes(run: Inflicting) -> dict[str, int]:
    return {name: psutil.Process(child.popen.pid).memory_info().rss for name, child in run.stage.roles.items()}


# Drafts


def _served(run: Inflicting) -> Checkpoint:
    """The hand-made draft that the run began with."""
    return checkpoint.load(run.stage.folder / "untrained" / "rounds" / "00000001" / "candidate")


def _random_draft(run: Inflicting, folder: Path, seed: int) -> Checkpoint:
    """Of the right shapes, and of weights that nothing was learnt by."""
    stage = run.stage
    config = config_for_target(
        json.loads((stage.model_dir / "config.json").read_text()), stage.spec.aux_layer_ids, stage.draft_vocab
    )
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: (torch.randn(tensor.shape, generator=generator) * 0.05).to(tensor.dtype)
        if tensor.is_floating_point() and tensor.ndim == 2
        else tensor
        for name, tensor in checkpoint.placeholder(config).tensors.items()
    }
    return checkpoint.save(folder, config, tensors)


async def _claim(bus: Bus, digest: str) -> int:
    version = 1
    while True:
        try:
            await _put(bus, DraftClaim(version, hostile.TRAINER, digest, time.time()), expected_last=0)
            return version
        except BusConflictError:
            version += 1


async def _publish_draft(
    run: Inflicting,
    bus: Bus,
    version: int,
    made: Checkpoint,
    *,
    order: str = "whole",
    base: tuple[int, str] | None = None,
    accept_length: float = 1.9,
) -> None:
    """As a trainer would, with scores that pass the gate; `order` says what happens to the parts."""
    serving = (await run.stage.role("controller"))["serving_version"]
    parts = split_parts(await asyncio.to_thread(delta.encode, made), _PART_BYTES)
    for entry, data in reversed(parts) if order == "reordered" else parts:
        sent = data[: len(data) // 2] if order == "truncated" and entry.index == len(parts) - 1 else data
        part = DraftPart(version, entry.index, sent)
        for copy in range(2 if order == "duplicated" else 1):
            # Another id each time, or the broker itself would drop the second one.
            subject = subjects.subject_of(MODEL, part)
            await bus.publish(subject, envelope.encode(part), message_id=f"{subject}:{order}:{copy}")
    scores = tuple(
        RequestScore(f"{number:016x}", "", 0, 100, 110.0, 100 * accept_length + number) for number in range(12)
    )
    manifest = DraftManifest(
        spec=run.stage.spec,
        version=version,
        parent_version=serving,
        base_version=base[0] if base else None,
        base_digest=base[1] if base else "",
        content_digest=made.digest,
        draft_vocab_size=made.config.draft_vocab_size,
        vocab_map_digest=checkpoint.load(run.stage.folder / "untrained/rounds/00000001/candidate").vocab_map.digest(),
        config_json=made.config.to_json(),
        tensors=tuple(TensorEntry(name, *entry) for name, entry in tensor_digests(made.tensors).items()),
        parts=tuple(entry for entry, _ in parts),
        trainer=hostile.TRAINER,
        created_at=time.time(),
        num_train_tokens=1,
        oldest_sample_at=0.0,
        newest_sample_at=0.0,
        num_steps=3,
        scores=scores,
    )
    await _put(bus, manifest, expected_last=0)


async def _put(bus: Bus, record: Record, expected_last: int | None = None) -> None:
    await bus.publish(
        subjects.subject_of(MODEL, record),
        envelope.encode(record),
        message_id=subjects.message_id(MODEL, record),
        expected_last=expected_last,
    )


async def _never_runs(run: Inflicting, version: int, for_s: float) -> None:
    """It must not be read back from the engine, and somebody must say what is wrong with it."""
    run.expect(
        "the server says why it does not run",
        "server",
        lambda status: status["health"]["server.desired_state"] != "ok",
        lambda metrics: metrics["tide_dependency_ok{server.desired_state}"] == 0,
    )
    until = time.monotonic() + for_s
    while time.monotonic() < until:
        shown = await run.stage.role("server")
        if shown and shown["draft_version"] == version:
            run.broken.append(f"version {version} runs")
            return
        if await run.seen(0.5):
            return

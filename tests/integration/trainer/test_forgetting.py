"""One request's samples are forgotten: by the store, by the stream, by a trainer that was away, for good."""

import argparse
import asyncio
import dataclasses
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.integration.trainer.harness import Surroundings, Trainer, eventually
from tests.nats_fixture import NatsServer
from tests.trainer_samples import chunks, request_id
from tide_daemon.bus.connection import ConnectSettings
from tide_daemon.bus.jetstream import JetStreamBus
from tide_daemon.bus.topology import TopologyLimits, build_topology
from tide_daemon.exit_codes import ExitCode
from tide_daemon.tools import samples
from tide_daemon.tools.configured_bus import OpenedBus
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.envelope import PREFIX_BYTES
from tide_daemon.wire.records import HiddenChunk, SamplesForgotten
from tide_daemon.wire.withheld import withhold

TOPOLOGY = build_topology(TopologyLimits())
LOST = request_id(3)


@pytest.fixture
async def bus(nats_server: NatsServer) -> AsyncIterator[JetStreamBus]:
    settings = ConnectSettings((nats_server.url,), "test", reconnect_wait_s=0.1)
    bus = await JetStreamBus.connect(settings, TOPOLOGY)
    await bus.ensure()
    yield bus
    await bus.close()


async def ask(bus: JetStreamBus, *words: str) -> tuple[int, dict[str, object]]:
    """`tide-daemon samples WORDS --json` over the test's bus."""

    @asynccontextmanager
    async def opened(arguments: argparse.Namespace) -> AsyncIterator[OpenedBus]:
        yield OpenedBus(bus, "tiny")

    parser = argparse.ArgumentParser()
    samples.add_arguments(parser)
    out = io.StringIO()
    code = await samples.run_on_bus(parser.parse_args([*words, "--json"]), opened, out)
    return code, json.loads(out.getvalue())


def frame_of(number: int) -> bytes:
    """Bytes by which a request's first chunk is found on a disk."""
    return envelope.encode(next(chunks(number, captured_at=1e9)))[PREFIX_BYTES + 64 : PREFIX_BYTES + 128]


def on_disk(folder: Path, needle: bytes) -> bool:
    return any(needle in path.read_bytes() for path in folder.rglob("*") if path.is_file())


async def serve(around: Surroundings, numbers: range) -> None:
    for number in numbers:
        for chunk in chunks(number, captured_at=1e9):
            await around.publish(chunk)


async def on_disk_soon(folder: Path, needle: bytes) -> bool:
    """The broker writes the stream of hidden states a moment after it acknowledged."""

    async def there() -> bool | None:
        return await asyncio.to_thread(on_disk, folder, needle) or None

    return await eventually(there, 10)


async def ids(bus: JetStreamBus) -> set[str | None]:
    found = await bus.message_ids(subjects.all_hidden("tiny"), "test")
    return {subjects.request_of_chunk(message_id) for _, message_id in found}


async def test_a_request_is_erased_from_store_and_stream(
    bus: JetStreamBus, nats_server: NatsServer, target: Path, tmp_path: Path
) -> None:
    """Two chunks in each, gone from both disks; the others stay; asking again finds nothing more and does no harm."""
    around, state = Surroundings(bus), tmp_path / "state"
    trainer = Trainer(bus, state, target, store_max_age_s=1e10)
    await serve(around, range(10))
    await trainer.until(lambda shown: shown["num_requests"] == 10)
    await around.report()
    needle = frame_of(3)
    assert on_disk(state / "store", needle) and await on_disk_soon(nats_server.folder / "store", needle)

    code, answer = await ask(bus, "forget", LOST, "--reason", "asked for")
    assert code == ExitCode.OK
    (erasure,) = answer["trainers"]  # type: ignore[misc]
    assert (erasure["trainer"], erasure["num_stored"], erasure["num_streamed"]) == ("t1", 2, 2)
    assert trainer.shown["num_requests"] == 9 or await trainer.until(lambda shown: shown["num_requests"] == 9)
    assert await ids(bus) == {request_id(number) for number in range(10)} - {LOST}
    assert not on_disk(state / "store", needle) and on_disk(state / "store", frame_of(4))
    assert not on_disk(nats_server.folder / "store", needle), "overwritten on the broker's disk"

    code, answer = await ask(bus, "forget", LOST)
    assert code == ExitCode.OK
    (erasure,) = answer["trainers"]  # type: ignore[misc]
    assert (erasure["num_stored"], erasure["num_streamed"]) == (2, 2), "what was erased in all"
    await trainer.stop()


async def test_a_chunk_that_comes_late_is_refused_and_erased(bus: JetStreamBus, target: Path, tmp_path: Path) -> None:
    """A server that had not heard yet publishes more of it: not stored, not kept in the stream, and counted."""
    around = Surroundings(bus)
    trainer = Trainer(bus, tmp_path / "state", target)
    await serve(around, range(2))
    await around.report()
    first, second = chunks(3)
    await around.publish(first)
    await trainer.until(lambda shown: shown["num_requests"] == 3)
    await ask(bus, "forget", LOST)
    await around.publish(second)

    async def both_told() -> bool | None:
        message = await bus.last(subjects.forgotten("tiny", LOST, "t1"))
        assert message is not None
        told = envelope.decode(message.data)
        assert isinstance(told, SamplesForgotten)
        return (told.num_stored, told.num_streamed) == (1, 2) or None

    await eventually(both_told, 20)
    assert LOST not in await ids(bus)
    assert trainer.shown["refused"] == {"forgotten": 1} and not trainer.shown["problems"]
    await trainer.stop()


async def test_a_trainer_that_was_away_obeys_when_it_comes_back(
    bus: JetStreamBus, target: Path, tmp_path: Path
) -> None:
    """The command says who has not answered; the trainer deletes; a later start has nothing to do."""
    around = Surroundings(bus)
    trainer = Trainer(bus, tmp_path / "state", target)
    await serve(around, range(5))
    await trainer.until(lambda shown: shown["num_requests"] == 5)
    await around.report()
    await trainer.stop()

    code, answer = await ask(bus, "forget", LOST, "--wait", "0.1")
    assert code == ExitCode.FAILED
    (erasure,) = answer["trainers"]  # type: ignore[misc]
    assert erasure["at"] is None and erasure["heard_s"] < 60
    assert LOST in await ids(bus)

    trainer = Trainer(bus, tmp_path / "state", target)
    await trainer.until(lambda shown: shown["num_requests"] == 4)

    async def done() -> bool | None:
        return (await ask(bus, "list"))[0] == ExitCode.OK or None

    await eventually(done, 20)
    assert LOST not in await ids(bus)
    await trainer.stop()
    before = await bus.last(subjects.forgotten("tiny", LOST, "t1"))
    trainer = Trainer(bus, tmp_path / "state", target)
    await trainer.until(lambda shown: shown["num_requests"] == 4)
    await asyncio.sleep(1.0)
    assert await bus.last(subjects.forgotten("tiny", LOST, "t1")) == before, "nothing was looked for again"
    await trainer.stop()


async def test_two_trainers_erase_each_its_own(bus: JetStreamBus, target: Path, tmp_path: Path) -> None:
    """Each message of the stream is counted by one of them, and every store is clean."""
    around = Surroundings(bus)
    trainers = [Trainer(bus, tmp_path / name, target, name=name, fetch_max_messages=1) for name in ("t1", "t2")]
    await serve(around, range(8))

    async def all_stored() -> bool | None:
        stored = sum(int(str(trainer.shown["store"]["appended"])) for trainer in trainers)  # type: ignore[index]
        return stored == 16 or None

    await eventually(all_stored, 20)

    async def both_reported() -> bool | None:
        reports = [await bus.last(subjects.report("tiny", name, "trainer")) for name in ("t1", "t2")]
        return all(reports) or None

    await eventually(both_reported, 10)
    code, answer = await ask(bus, "forget", LOST)
    assert code == ExitCode.OK
    erased = answer["trainers"]
    assert isinstance(erased, list)
    assert [entry["trainer"] for entry in erased] == ["t1", "t2"]
    assert sum(entry["num_stored"] for entry in erased) == 2 and sum(entry["num_streamed"] for entry in erased) == 2
    for trainer in trainers:
        await trainer.stop()


async def test_a_round_learns_from_chunks_that_name_no_token(bus: JetStreamBus, target: Path, tmp_path: Path) -> None:
    """The target's first choices tell the answers: a draft is trained and scored on them, prompts left out."""
    around = Surroundings(bus)
    trainer = Trainer(bus, tmp_path / "state", target)
    await around.serve(120, edit=withhold)
    await around.desire(1)
    manifest = await around.manifest(1)
    positions = sum(score.num_positions for score in manifest.scores)
    assert positions and sum(score.candidate_tokens for score in manifest.scores) / positions > 1.5
    assert not trainer.shown["refused"]
    await trainer.stop()


async def test_chunks_that_tell_nothing_are_refused_with_what_to_do(
    bus: JetStreamBus, target: Path, tmp_path: Path
) -> None:
    """No token and no top-k: one plain sentence."""
    around = Surroundings(bus)
    trainer = Trainer(bus, tmp_path / "state", target)

    def blind(chunk: HiddenChunk) -> HiddenChunk:
        return dataclasses.replace(
            withhold(chunk), topk_ids=chunk.topk_ids[:, :0], topk_logprobs=chunk.topk_logprobs[:, :0]
        )

    await around.serve(2, edit=blind)
    shown = await trainer.until(lambda shown: shown["refused"] == {"tokens_withheld": 4})
    assert "set capture.token_ids, or capture.topk_logprobs" in str(shown["problems"])
    await trainer.stop()

"""Publishing and fetching drafts over the in-memory bus: cut off anywhere, versions stay whole and unique."""

import asyncio
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.trainer_samples import CONFIG, LAYERS, SPEC
from tide_daemon.bus.memory import MemoryBroker, MemoryBus
from tide_daemon.bus.topology import TopologyLimits, build_topology
from tide_daemon.draft import checkpoint, delta
from tide_daemon.draft.checkpoint import Checkpoint, placeholder
from tide_daemon.draft.config import config_for_target
from tide_daemon.errors import BusUnavailableError, DraftError
from tide_daemon.roles import draft_fetch, draft_publish
from tide_daemon.roles.draft_catalog import GONE_AFTER_S, DraftCatalog, Listed, chain, removable
from tide_daemon.roles.draft_fetch import DraftFetcher
from tide_daemon.roles.draft_publish import Base, Publisher
from tide_daemon.trainer.rounds import Round, Rounds, Trained
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.records import DesiredServer, DesiredTrainer, DraftManifest, DraftPart, RequestScore

DRAFT_CONFIG = config_for_target(CONFIG, LAYERS, 64)
SCORES = (RequestScore("0" * 16, "code", 8, 20, 20.0, 33.0),)


def make_draft(folder: Path, seed: int) -> Checkpoint:
    """Drafts of neighbouring seeds differ a little, as successive versions do."""
    base = torch.Generator().manual_seed(0)
    noise = torch.Generator().manual_seed(seed)
    tensors = dict(placeholder(DRAFT_CONFIG).tensors)
    for name, tensor in tensors.items():
        if tensor.dtype == torch.bfloat16:
            values = torch.randn(tensor.shape, generator=base)
            tensors[name] = (values * (1 + 0.01 * torch.randn(tensor.shape, generator=noise))).to(torch.bfloat16)
    return checkpoint.save(folder, DRAFT_CONFIG, tensors)


def make_round(state_dir: Path, number: int) -> Round:
    round_ = Rounds(state_dir).open(number)
    digest = make_draft(round_.candidate_dir, number).digest
    round_.set_trained(Trained(digest, "", "nothing", 5, 100, 500, 100, 9, 1.0, 2.0, 3.0, 1.0, 4.0, 4.0))
    return round_


class FailingBus(MemoryBus):
    """Fails at one publish: before it is stored, or after, when only the acknowledgement is lost."""

    fail_at = -1
    stored_first = False
    num_publishes = 0

    async def publish(self, subject: str, data: bytes, **options: object) -> int:  # type: ignore[override]
        self.num_publishes += 1
        if self.num_publishes == self.fail_at:
            if self.stored_first:
                await super().publish(subject, data, **options)  # type: ignore[arg-type]
            raise BusUnavailableError("cut off")
        return await super().publish(subject, data, **options)  # type: ignore[arg-type]


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker(build_topology(TopologyLimits()), max_payload=28_000)


def publisher(bus: MemoryBus, trainer: str = "t1") -> Publisher:
    return Publisher(bus, SPEC, trainer, 8, now=lambda: 1_700_000_000.0)


async def test_a_draft_arrives_bit_for_bit(broker: MemoryBroker, tmp_path: Path) -> None:
    """The first version is an anchor; a reader without anything gets the very same tensors."""
    bus = MemoryBus(broker)
    round_ = make_round(tmp_path, 1)
    manifest = await publisher(bus).publish(round_, SCORES, 3, None, 0)
    assert (manifest.version, manifest.parent_version, manifest.base_version) == (1, 0, None)
    assert len(manifest.parts) > 2
    fetched = await DraftFetcher(bus, tmp_path / "cache").fetch(SPEC, 1, manifest.content_digest)
    assert checkpoint.load(fetched).digest == checkpoint.load(round_.candidate_dir).digest
    assert (fetched / "config.json").read_text() == (round_.candidate_dir / "config.json").read_text()


async def test_work_that_grows_with_the_draft_is_done_beside_the_loop(
    broker: MemoryBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Digests over gigabytes take seconds, and meanwhile the daemon must renew its lease and answer its watchdog."""
    in_loop: list[str] = []

    def watch(module: object, name: str) -> None:
        original = getattr(module, name)

        def watched(*args: object, **kwargs: object) -> object:
            if threading.current_thread() is threading.main_thread():
                in_loop.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, watched)

    for module, name in (
        (draft_publish, "split_parts"), (draft_publish, "tensor_digests"),
        (draft_fetch, "join_parts"), (draft_fetch, "tensor_digests"),
        (checkpoint, "load"), (checkpoint, "save"), (delta, "encode"), (delta, "apply"),
    ):  # fmt: skip
        watch(module, name)
    bus, round_ = MemoryBus(broker), make_round(tmp_path, 1)
    in_loop.clear()
    manifest = await publisher(bus).publish(round_, SCORES, 3, None, 0)
    await DraftFetcher(bus, tmp_path / "cache").fetch(SPEC, 1, manifest.content_digest)
    assert in_loop == []


async def test_deltas_follow_an_anchor_and_a_new_reader_walks_down_to_it(broker: MemoryBroker, tmp_path: Path) -> None:
    """Versions 2..7 are deltas; every eighth is dense; fetching the seventh first gives the same as the trainer's."""
    bus = MemoryBus(broker)
    base: Base | None = None
    manifests = []
    for number in range(1, 10):
        round_ = make_round(tmp_path, number)
        manifest = await publisher(bus).publish(round_, SCORES, 3, base, number - 1)
        manifests.append(manifest)
        links = 0 if manifest.base_version is None or base is None else base.chain + 1
        base = Base(manifest.version, checkpoint.load(round_.candidate_dir), links)
    assert [m.base_version for m in manifests] == [None, 1, 2, 3, 4, 5, 6, None, 8]
    sizes = [sum(p.num_bytes for p in m.parts) for m in manifests]
    assert sizes[1] < 0.9 * sizes[0]
    seventh = manifests[6]
    fetcher = DraftFetcher(bus, tmp_path / "cache", keep=3)
    path = await fetcher.fetch(SPEC, 7, seventh.content_digest)
    assert checkpoint.load(path).digest == seventh.content_digest
    assert len(list((tmp_path / "cache").iterdir())) == 3
    assert await fetcher.fetch(SPEC, 7, seventh.content_digest) == path


@pytest.mark.parametrize("stored_first", [False, True], ids=["before_it_is_stored", "acknowledgement_lost"])
async def test_publishing_cut_off_anywhere_is_finished_by_the_next_call(
    broker: MemoryBroker, tmp_path: Path, stored_first: bool
) -> None:
    """Interrupted at every message in turn: one version without holes, then the next one."""
    bus = FailingBus(broker)
    round_ = make_round(tmp_path, 1)
    bus.stored_first = stored_first
    failures = 0
    manifest = None
    while manifest is None:
        bus.num_publishes, bus.fail_at = 0, failures + 1
        try:
            manifest = await publisher(bus).publish(Round(round_.folder), SCORES, 3, None, 0)
        except BusUnavailableError:
            failures += 1
    bus.fail_at = -1
    assert failures >= len(manifest.parts) > 2
    assert manifest.version == 1
    assert await bus.last(subjects.draft_claim("tiny", 2)) is None
    path = await DraftFetcher(bus, tmp_path / "cache").fetch(SPEC, 1, manifest.content_digest)
    assert checkpoint.load(path).digest == manifest.content_digest
    following = await publisher(bus).publish(make_round(tmp_path, 2), SCORES, 3, None, 0)
    assert following.version == 2


async def test_a_state_directory_lost_between_claim_and_manifest_wastes_a_number_only(
    broker: MemoryBroker, tmp_path: Path
) -> None:
    """Another content never gets a claimed number."""
    bus = FailingBus(broker)
    bus.fail_at = 2
    with pytest.raises(BusUnavailableError):
        await publisher(bus).publish(make_round(tmp_path / "a", 1), SCORES, 3, None, 0)
    shutil.rmtree(tmp_path / "a")
    bus.fail_at = -1
    manifest = await publisher(bus).publish(make_round(tmp_path / "b", 2), SCORES, 3, None, 0)
    assert manifest.version == 2


async def test_two_trainers_never_share_a_number(broker: MemoryBroker, tmp_path: Path) -> None:
    """Claims are by compare-and-set, contents of different trainers stay apart, even equal ones."""
    bus = MemoryBus(broker)
    one = await publisher(bus, "t1").publish(make_round(tmp_path / "a", 1), SCORES, 3, None, 0)
    two = await publisher(bus, "t2").publish(make_round(tmp_path / "b", 1), SCORES, 3, None, 0)
    assert (one.version, two.version) == (1, 2)


async def test_free_numbers_are_found_above_many(broker: MemoryBroker, tmp_path: Path) -> None:
    """A new trainer on an old stream finds the end in a few look-ups."""
    bus = MemoryBus(broker)
    for version in range(1, 300):
        await bus.publish(subjects.draft_claim("tiny", version), b"x")
    manifest = await publisher(bus).publish(make_round(tmp_path, 1), SCORES, 3, None, 0)
    assert manifest.version == 300


async def published(bus: MemoryBus, tmp_path: Path) -> DraftManifest:
    return await publisher(bus).publish(make_round(tmp_path, 1), SCORES, 3, None, 0)


async def test_a_draft_for_another_target_is_refused(broker: MemoryBroker, tmp_path: Path) -> None:
    """Fingerprint, layers and vocabulary must be the engine's own."""
    bus = MemoryBus(broker)
    manifest = await published(bus, tmp_path)
    fetcher = DraftFetcher(bus, tmp_path / "cache")
    for other in ({"target_fingerprint": "00" * 32}, {"aux_layer_ids": (0, 1, 3)}, {"vocab_size": 512}):
        with pytest.raises(DraftError, match="is for"):
            await fetcher.fetch(replace(SPEC, **other), 1, manifest.content_digest)  # type: ignore[arg-type]
    with pytest.raises(DraftError, match="wanted"):
        await fetcher.fetch(SPEC, 1, "0" * 64)
    with pytest.raises(DraftError, match="no manifest"):
        await fetcher.fetch(SPEC, 5, manifest.content_digest)
    assert not (tmp_path / "cache").exists()


async def test_a_damaged_or_missing_part_is_refused(broker: MemoryBroker, tmp_path: Path) -> None:
    """Nothing appears in the cache."""
    bus = MemoryBus(broker)
    manifest = await published(bus, tmp_path)
    subject = subjects.draft_part("tiny", 1, 1)
    good = await bus.last(subject)
    assert good is not None
    part = envelope.decode(good.data)
    assert isinstance(part, DraftPart)
    fetcher = DraftFetcher(bus, tmp_path / "cache")
    await bus.publish(subject, envelope.encode(replace(part, data=b"\0" + part.data[1:])))
    with pytest.raises(DraftError, match="digest"):
        await fetcher.fetch(SPEC, 1, manifest.content_digest)
    await bus.purge(subject)
    with pytest.raises(DraftError, match="part 1"):
        await fetcher.fetch(SPEC, 1, manifest.content_digest)
    await bus.publish(subject, good.data)
    await fetcher.fetch(SPEC, 1, manifest.content_digest)


async def test_a_ring_of_deltas_ends(broker: MemoryBroker, tmp_path: Path) -> None:
    """A manifest that is its own base is refused, not followed for ever."""
    bus = MemoryBus(broker)
    manifest = await published(bus, tmp_path)
    ring = replace(manifest, base_version=1, base_digest=manifest.content_digest)
    await bus.publish(subjects.draft_manifest("tiny", 1), envelope.encode(ring))
    with pytest.raises(DraftError, match="ring"):
        await DraftFetcher(bus, tmp_path / "cache").fetch(SPEC, 1, manifest.content_digest)


async def test_a_damaged_cache_entry_is_fetched_again(broker: MemoryBroker, tmp_path: Path) -> None:
    """The cache is verified each time it is used."""
    bus = MemoryBus(broker)
    manifest = await published(bus, tmp_path)
    fetcher = DraftFetcher(bus, tmp_path / "cache")
    path = await fetcher.fetch(SPEC, 1, manifest.content_digest)
    weights = path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert checkpoint.load(await fetcher.fetch(SPEC, 1, manifest.content_digest)).digest == manifest.content_digest


def test_what_kept_deltas_need_is_kept() -> None:
    """Anchors and bases of versions in use stay; everything else older than the newest goes."""
    versions = {v: Listed(str(v), base, 3) for v, base in [(1, None), (2, 1), (3, 2), (4, None), (5, 4), (6, 4)]}
    assert removable(versions, [3], keep_newest=1) == [5]
    assert removable(versions, [6], keep_newest=2) == [1, 2, 3]
    assert removable(versions, [], keep_newest=0) == [1, 2, 3, 4, 5, 6]
    assert chain(versions, 3) == [3, 2, 1]
    del versions[1]
    assert chain(versions, 3) is None
    assert removable(versions, [3], keep_newest=1) == [5]


async def test_old_versions_are_purged_and_their_claims_stay(broker: MemoryBroker, tmp_path: Path) -> None:
    """Parts and manifests of unneeded versions leave the stream; the numbers stay taken."""
    bus = MemoryBus(broker)
    for number in range(1, 5):
        await publisher(bus).publish(make_round(tmp_path, number), SCORES, 3, None, number - 1)
    desired = DesiredServer("node-a", 1, 1, 0.0, 2, "ab" * 32, (), True, 1.0, "")
    await bus.publish(subjects.control_server("tiny", "node-a"), envelope.encode(desired))
    catalog = DraftCatalog(bus, "tiny", keep_newest=1)
    follower = asyncio.create_task(catalog.run())
    async with asyncio.timeout(5):
        await _until(lambda: len(catalog.listed()) == 4)
    await catalog.purge()
    follower.cancel()
    await asyncio.gather(follower, return_exceptions=True)
    assert sorted(catalog.listed()) == [2, 4]
    for version, is_kept in [(1, False), (2, True), (3, False), (4, True)]:
        assert (await bus.last(subjects.draft_manifest("tiny", version)) is not None) == is_kept
        assert (await bus.last(subjects.draft_part("tiny", version, 0)) is not None) == is_kept
        assert await bus.last(subjects.draft_claim("tiny", version)) is not None


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # the catalog is not ours to instrument
        await asyncio.sleep(0.01)


async def test_earlier_drafts_are_kept_and_can_be_told_from_gone_ones(broker: MemoryBroker, tmp_path: Path) -> None:
    """The pool of desired state keeps old versions and what they are deltas of; one with a hole is not published."""
    bus = MemoryBus(broker)
    base, digests = None, {}
    for number in range(1, 7):
        round_ = make_round(tmp_path, number)
        manifest = await publisher(bus).publish(round_, SCORES, 3, base, number - 1)
        digests[number] = manifest.content_digest
        held = checkpoint.load(round_.candidate_dir)
        base = None if number == 3 else Base(manifest.version, held, 0 if base is None else base.chain + 1)
    catalog = DraftCatalog(bus, "tiny", 1)
    desired = DesiredTrainer("t1", 1, 1, 0.0, 6, 6, digests[6], "test", ((2, digests[2]),))
    await bus.publish(subjects.control_trainer("tiny", "t1"), envelope.encode(desired))
    follower = asyncio.create_task(catalog.run())
    async with asyncio.timeout(5):
        await _until(lambda: len(catalog.listed()) == 6 and bool(catalog._in_use))
    await catalog.purge()
    follower.cancel()
    await asyncio.gather(follower, return_exceptions=True)
    assert sorted(catalog.listed()) == [1, 2, 4, 5, 6]  # 2 is a delta of 1, 6 of 5 and 4; 3 belongs to nobody
    fetcher = DraftFetcher(bus, tmp_path / "cache")
    assert await fetcher.is_published(SPEC, 2, digests[2]) and await fetcher.is_published(SPEC, 6, digests[6])
    assert not await fetcher.is_published(SPEC, 3, digests[3])
    await bus.purge(subjects.draft_part("tiny", 1, 0))
    assert not await fetcher.is_published(SPEC, 2, digests[2])


async def test_nodes_that_are_gone_keep_no_draft(tmp_path: Path) -> None:
    """What a node was asked for a day ago and never since counts no more, unless it is the newest of its kind."""
    now = [1_700_000_000.0]
    bus = MemoryBus(MemoryBroker(build_topology(TopologyLimits()), max_payload=28_000, clock=lambda: now[0]))
    for number in range(1, 6):
        await publisher(bus).publish(make_round(tmp_path, number), SCORES, 3, None, number - 1)

    async def ask(node: str, version: int) -> None:
        desired = DesiredServer(node, 1, 1, 0.0, version, "ab" * 32, (), True, 1.0, "")
        await bus.publish(subjects.control_server("tiny", node), envelope.encode(desired))

    await ask("gone", 1)
    trained = DesiredTrainer("t1", 1, 1, 0.0, 6, 3, "ab" * 32, "test", ())
    await bus.publish(subjects.control_trainer("tiny", "t1"), envelope.encode(trained))
    now[0] += GONE_AFTER_S - 10.0
    await ask("there", 2)
    catalog = DraftCatalog(bus, "tiny", 1)
    follower = asyncio.create_task(catalog.run())
    async with asyncio.timeout(5):
        await _until(lambda: len(catalog.listed()) == 5 and len(catalog._in_use) == 3)
        await catalog.purge()
        assert sorted(catalog.listed()) == [1, 2, 3, 5]
        now[0] += 20.0
        await ask("there", 2)
        await ask("new", 2)
        await _until(lambda: len(catalog._in_use) == 4)
        await catalog.purge()
    follower.cancel()
    await asyncio.gather(follower, return_exceptions=True)
    assert sorted(catalog.listed()) == [2, 3, 5]
    assert len(catalog._in_use) == 3

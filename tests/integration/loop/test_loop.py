"""The whole loop on a real broker: rows are learnt from, the draft is judged, deployed and confirmed."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.loop.fleet import Fleet, everything_on
from tests.nats_fixture import NatsServer
from tide_daemon.draft import checkpoint
from tide_daemon.wire import subjects
from tide_daemon.wire.records import (
    Decision,
    DesiredServer,
    DesiredTrainer,
    DraftManifest,
    DraftPart,
    HiddenChunk,
    NodeReport,
    TrainerReport,
)


@pytest.fixture
async def fleet(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Fleet]:
    fleet = Fleet(nats_server.url, tmp_path)
    await fleet.start()
    yield fleet
    await fleet.close()


async def speculates(fleet: Fleet) -> bool:
    """A trained draft runs, is used, and is the one that is desired."""
    stats, shown = await fleet.engine.stats(), fleet.server.snapshot()
    return (
        stats.draft.version > 0
        and shown["desired_draft_version"] == stats.draft.version
        and bool(shown["steps_table"])
        and any(step.num_steps > 0 for step in stats.steps)
        and not shown["last_error"]
    )


async def confirmed(fleet: Fleet) -> bool:
    """The canary has passed: the fleet serves a draft."""
    return bool(fleet.controller.snapshot().get("serving_version"))


def assert_journalled_once(decisions: list[Decision]) -> None:
    """Every decision of every reign stands there once, in order and without a gap."""
    places = [(decision.fencing_token, decision.sequence) for decision in decisions]
    assert places == sorted(set(places))
    for token in {token for token, _ in places}:
        sequences = [sequence for held, sequence in places if held == token]
        assert sequences == list(range(1, len(sequences) + 1))


async def test_from_day_0_to_a_served_draft(fleet: Fleet, tmp_path: Path) -> None:
    """Chunks flow, a round runs, its candidate passes the gate and the canary, is swapped in and speculated with.

    Every message that passed over the bus is what its schema says, and the journal has the reasons.
    """
    await fleet.until(lambda: speculates(fleet), "a draft is served")
    await fleet.until(lambda: confirmed(fleet), "the canary has passed")
    await fleet.drain()
    messages = await everything_on(await fleet.bus())
    by_kind: dict[type, list[object]] = {}
    for subject, record in messages:
        subjects.verify(subject, record)
        by_kind.setdefault(type(record), []).append(record)
    expected = {
        HiddenChunk, NodeReport, TrainerReport, DraftPart, DraftManifest, DesiredServer, DesiredTrainer, Decision,
    }  # fmt: skip
    assert expected <= by_kind.keys()

    manifest = by_kind[DraftManifest][0]
    assert isinstance(manifest, DraftManifest)
    assert manifest.version == 1 and fleet.engine.swapped[0] == 1
    assert sorted(set(fleet.engine.swapped)) == fleet.engine.swapped, "each version is applied once"
    (applied,) = (tmp_path / "drafts").glob(f"00000001-{manifest.content_digest[:16]}")
    fetched = checkpoint.load(applied, manifest.content_digest)
    assert fetched.digest == manifest.content_digest

    decisions = [record for record in by_kind[Decision] if isinstance(record, Decision)]
    taken = [(item["instruction"], item["reason"]) for decision in decisions for item in decision.instructions]
    assert all(reason for _, reason in taken)
    assert any(kind == "set_trainer" and "there is no draft yet" in reason for kind, reason in taken)
    verdicts = [item for decision in decisions for item in decision.instructions if item["instruction"] == "judged"]
    assert [(item["version"], item["verdict"]) for item in verdicts][:1] == [(1, "promote")]
    assert verdicts[0]["numbers"]["lower_bound"] > 0
    assert any(kind == "fleet_moved" and "canary of version 1 passed" in reason for kind, reason in taken)
    assert_journalled_once(decisions)


async def test_the_broker_is_killed_in_the_middle_of_the_first_round(fleet: Fleet, nats_server: NatsServer) -> None:
    """Serving and training go on; the loop closes all the same, and every version is applied once."""

    async def training() -> bool:
        return fleet.trainer.snapshot()["state"] == "training"

    await fleet.until(training, "a round begins")
    nats_server.kill()
    before = (await fleet.engine.stats()).steps
    await asyncio.sleep(1.0)
    assert (await fleet.engine.stats()).steps != before
    nats_server.start()
    await fleet.until(lambda: speculates(fleet), "a draft is served")
    await fleet.until(lambda: confirmed(fleet), "the canary has passed")
    await fleet.drain()
    assert sorted(set(fleet.engine.swapped)) == fleet.engine.swapped
    decisions = [record for _, record in await everything_on(await fleet.bus()) if isinstance(record, Decision)]
    assert_journalled_once(decisions)

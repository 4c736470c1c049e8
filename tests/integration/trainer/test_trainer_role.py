"""A trainer from chunks to published drafts, over the in-memory bus, with a real worker process."""

from dataclasses import replace
from pathlib import Path

from tests.integration.trainer.harness import Surroundings, Trainer, eventually
from tests.trainer_samples import SPEC, request_id
from tide_daemon.bus.memory import MemoryBus
from tide_daemon.draft import checkpoint
from tide_daemon.roles.draft_fetch import DraftFetcher
from tide_daemon.wire.records import TrainerReport


async def test_day_0_then_a_round_on_top(bus: MemoryBus, target: Path, tmp_path: Path) -> None:
    """The first draft comes from nothing but traffic; the second goes on from it, is a delta, and accepts more."""
    around = Surroundings(bus)
    trainer = Trainer(bus, tmp_path / "state", target)
    await around.serve(40)
    await around.desire(1)
    first = await around.manifest(1)
    assert (first.parent_version, first.base_version, first.trainer) == (0, None, "t1")
    assert first.scores and all(score.by_position for score in first.scores)
    plain = sum(s.num_positions for s in first.scores)
    assert sum(s.serving_tokens for s in first.scores) == plain
    path = await DraftFetcher(bus, tmp_path / "cache").fetch(SPEC, 1, first.content_digest)
    assert checkpoint.load(path).config.draft_vocab_size == 96
    await around.serve(40)
    await trainer.until(lambda shown: shown["num_requests"] == 80)
    await around.desire(2, first)
    second = await around.manifest(2)
    assert (second.parent_version, second.base_version, second.base_digest) == (1, 1, first.content_digest)
    assert second.num_train_tokens > first.num_train_tokens
    serving = sum(s.serving_tokens for s in second.scores) / sum(s.num_positions for s in second.scores)
    candidate = sum(s.candidate_tokens for s in second.scores) / sum(s.num_positions for s in second.scores)
    assert candidate > serving > 1.0
    shown = await trainer.until(lambda shown: shown["state"] == "waiting" and bool(shown["shadow"]))
    assert shown["worker_starts"] == 1

    async def waiting() -> bool | None:
        report = await around.report()
        assert (report.round, report.serving_version) == (2, 1)
        assert [(item.workload, item.num_requests) for item in report.workloads] == [("code", 80)]
        if report.state != "waiting" or not report.shadow:
            return None
        assert report.new_tokens == 0, "what a round has used asks for no other one, though nothing came since"
        return True

    await eventually(waiting, 10)
    await trainer.stop()


async def test_earlier_drafts_are_scored_when_asked_for(bus: MemoryBus, target: Path, tmp_path: Path) -> None:
    """On requests that were finished after the question, paired with the serving draft; one that is gone has no scores;
    the answer stands until it is no longer wanted."""
    around = Surroundings(bus)
    trainer = Trainer(bus, tmp_path / "state", target)
    await around.serve(40)
    await around.desire(1)
    first = await around.manifest(1)
    await around.serve(40)
    await trainer.until(lambda shown: shown["num_requests"] == 80)
    await around.desire(2, first)
    second = await around.manifest(2)
    gone = (7, "ab" * 32)
    await around.desire(2, second, pool=((1, first.content_digest), gone), pool_scoring=5)
    await trainer.until(lambda shown: shown["pool_scoring"] == 5)
    await around.serve(7)
    await trainer.until(lambda shown: shown["num_requests"] == 87)
    assert (await around.report()).pool_scoring == 0
    await around.serve(3)

    async def answered() -> TrainerReport | None:
        report = await around.report()
        return report if report.pool_scoring == 5 else None

    held, missing = (await eventually(answered, 60)).pool
    assert (held.version, held.serving_version, held.num_steps) == (1, 2, 3)
    assert (missing.version, missing.scores) == (7, ())
    newest = {request_id(number)[:16] for number in range(80, 90)}
    assert len(held.scores) == 8 and {score.request for score in held.scores} < newest
    serving, earlier = (sum(getattr(s, name) for s in held.scores) for name in ("serving_tokens", "candidate_tokens"))
    assert serving > earlier  # the second draft has learnt more of the same traffic
    await around.desire(2, second, pool=((1, first.content_digest),))

    async def withdrawn() -> bool | None:
        report = await around.report()
        return True if report.pool_scoring == 0 and report.pool == () else None

    await eventually(withdrawn, 10)
    await trainer.stop()


async def test_chunks_of_another_target_are_refused_and_counted(bus: MemoryBus, target: Path, tmp_path: Path) -> None:
    """They are ended for good, and the report says why."""
    around = Surroundings(bus)
    trainer = Trainer(bus, tmp_path / "state", target)
    await around.serve(2)
    await trainer.until(lambda shown: shown["num_requests"] == 2)
    other = replace(SPEC, aux_layer_ids=(0, 1, 3))
    await around.serve(3, edit=lambda chunk: replace(chunk, spec=other))
    await bus.publish("tide.v1.hidden.tiny.node-a", b"rubbish")
    shown = await trainer.until(lambda shown: sum(shown["refused"].values()) == 7)  # type: ignore[attr-defined]
    assert shown["refused"] == {"other_aux_layer_ids": 6, "damaged": 1}

    async def told() -> bool | None:
        return any("other_aux_layer_ids" in problem for problem in (await around.report()).problems) or None

    await eventually(told, 10)
    await trainer.stop()

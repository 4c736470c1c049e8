"""The runtime against stand-ins for SGLang's scheduler: what is staged, and what tensor-parallel ranks do together."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.unit.engine.tap_batches import VOCAB, WIDTH, Req, states, values
from tests.unit.engine.test_agree import on_two_ranks
from tide_daemon.engine.port import CaptureSettings
from tide_daemon.engine.ring import RingReader
from tide_daemon.engine.sglang import agree, checks, runtime
from tide_daemon.engine.sglang.commands import Commands
from tide_daemon.engine.sglang.runtime import STAGED, Runtime
from tide_daemon.engine.sglang.settings import PluginSettings, write_settings
from tide_daemon.errors import EngineError


def facts(tp_rank: int = 0, tp_size: int = 1, draft_vocab_size: int = VOCAB) -> checks.Facts:
    return checks.Facts(
        device="cpu", tp_size=tp_size, tp_rank=tp_rank, dp_rank=0, model_path="m", dtype="float32",
        aux_layer_ids=(1,), hidden_size=WIDTH, aux_width=WIDTH, vocab_size=VOCAB, draft_vocab_size=draft_vocab_size,
        candidate_steps=(0, 1, 2),
    )  # fmt: skip


class Swapper:
    """Stands for one that can swap; `staged` is the version that it has."""

    def __init__(self, *args: Any) -> None:
        self.staged = 0
        self.applied: list[int] = []

    def apply_version(self, version: int, on_every_rank: Any) -> None:
        if not on_every_rank(version == self.staged):
            raise EngineError("not on every rank")
        self.applied.append(version)


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Starts a runtime with the facts that its scheduler carries; an exception there is raised."""
    write_settings(tmp_path, PluginSettings(ring_dir=str(tmp_path), ring_bytes=1 << 20, topk=2))
    monkeypatch.setattr(runtime, "Swapper", Swapper)

    def inspect(scheduler: Any, missing: list[str]) -> checks.Facts:
        if isinstance(scheduler.facts, Exception):
            raise scheduler.facts
        made: checks.Facts = scheduler.facts
        return made

    monkeypatch.setattr(checks, "inspect", inspect)
    here = threading.local()  # a rank is a thread
    monkeypatch.setattr(checks, "own_ranks", lambda: (0, here.rank))

    def begin(scheduler: Any) -> Runtime:
        here.rank = scheduler.rank
        return Runtime.start(scheduler, tmp_path, [])

    yield begin
    checks.set_skip_zero_step_extend(False)


def scheduler_of(found: checks.Facts | Exception, **more: Any) -> Any:
    alone = SimpleNamespace(nnodes=2)
    plain: dict[str, Any] = {"rank": 0, "server_args": alone, "running_batch": None}
    worker = SimpleNamespace(_draft_worker=None)
    return SimpleNamespace(**(plain | {"facts": found, "model_worker": worker} | more))


def batch_of(*reqs: Req) -> Any:
    mode = SimpleNamespace(is_idle=lambda: False)
    return SimpleNamespace(
        reqs=list(reqs), seq_lens=torch.zeros(len(reqs)), forward_mode=mode, extend_lens=[2] * len(reqs),
        prefix_lens=[0] * len(reqs), sampling_info=SimpleNamespace(is_all_greedy=True),
    )  # fmt: skip


def result_of(rows: int) -> Any:
    logits = SimpleNamespace(hidden_states=states(rows), next_token_logits=torch.zeros(rows, VOCAB))
    return SimpleNamespace(logits_output=logits, speculative_num_draft_tokens=1)


def test_a_batch_without_captured_requests_is_not_staged(start: Any) -> None:
    """And what earlier batches left goes to the ring all the same."""
    made = start(scheduler_of(facts()))
    made.tap.settings = CaptureSettings(True, excluded=("not",))
    reader = RingReader(made.tap.ring.path)
    ours, other = Req([1, 2]), Req([1, 2], custom_params={"tide_workload": "not"})
    mixed, alone = batch_of(ours, other), batch_of(other)
    prefill, step = result_of(4), result_of(1)
    made.stage_prefill(mixed, prefill)
    assert getattr(prefill, STAGED) is not None
    ours.output_ids.append(3)
    made.commit_prefill(mixed, prefill, None)
    made.stage_verify(batch_of(ours), step)
    ours.output_ids.append(4)
    made.commit_verify(batch_of(ours), step, [1])
    assert reader.waiting() == 2, "a plain step is kept for a while"
    stages = (made.stage_prefill, made.commit_prefill, 2), (made.stage_verify, made.commit_verify, 1)
    for stage, commit, rows in stages:
        result = result_of(rows)
        stage(alone, result)
        assert not hasattr(result, STAGED)
        commit(alone, result, [1])
        assert reader.waiting() == 3
    assert values(reader.take(3)) == [0, 1, 0]
    reader.close()


@pytest.mark.parametrize(("shares", "draft_vocab"), [(False, VOCAB), (True, VOCAB), (True, VOCAB - 1)])
def test_prefill_logits_that_the_draft_has_overwritten_are_not_taken(
    start: Any, monkeypatch: pytest.MonkeyPatch, shares: bool, draft_vocab: int
) -> None:
    monkeypatch.setattr(runtime.gpu.Device, "shares_logits", shares)
    made = start(scheduler_of(facts(draft_vocab_size=draft_vocab)))
    result = result_of(2)
    made.stage_prefill(batch_of(Req([1, 2])), result)
    assert (getattr(result, STAGED).logits is None) == (shares and draft_vocab == VOCAB)


def test_ranks_have_the_same_features(start: Any) -> None:
    """Also when one of them fails at its start, before it knows its own rank."""

    def features(rank: int, scheduler: Any, found: checks.Facts | Exception) -> dict[str, bool]:
        made = start(scheduler_of(found, **vars(scheduler)))
        return {feature: made.enabled(feature) for feature in agree.STEERING}

    all_on, all_off = dict.fromkeys(agree.STEERING, True), dict.fromkeys(agree.STEERING, False)
    assert on_two_ranks(lambda rank, scheduler: features(rank, scheduler, facts(rank, 2))) == [all_on] * 2
    found = [facts(0, 2), EngineError("not on this rank")]
    assert on_two_ranks(lambda rank, scheduler: features(rank, scheduler, found[rank])) == [all_off] * 2


def test_a_rank_that_failed_leaves_the_others_their_channels(start: Any, tmp_path: Path) -> None:
    start(scheduler_of(facts()))
    first = (tmp_path / "ctl-0.sock").stat().st_ino
    start(scheduler_of(EngineError("not on this rank"), rank=1))
    assert (tmp_path / "ctl-0-1.sock").exists()
    assert (tmp_path / "ctl-0.sock").stat().st_ino == first


def test_ranks_swap_together(start: Any) -> None:
    def swaps(rank: int, scheduler: Any) -> tuple[list[bool], list[int]]:
        made = start(scheduler_of(facts(rank, 2), **vars(scheduler)))
        obeyed = []
        for staged_by in ((), (0,), (0, 1)):
            made.swapper.staged = 7 if rank in staged_by else 0
            obeyed.append(made.on_internal_state({"tide_swap": 7}))
        return obeyed, made.swapper.applied

    assert on_two_ranks(swaps) == [([False, False, True], [7])] * 2


def test_steps_are_not_changed_on_one_rank_alone(start: Any) -> None:
    made = start(scheduler_of(facts()))
    Commands(made).set_steps({"table": [[2, 1]]})
    assert made.steps.table == ((2, 1),)
    made.num_ranks = 2
    with pytest.raises(EngineError, match="all ranks at once"):
        Commands(made).set_steps({"table": []})
    assert made.steps.table == ((2, 1),)
    made.on_internal_state({"tide_steps": 0})
    assert made.steps.table == ()


def test_a_rank_that_cannot_keep_step_ends(start: Any) -> None:
    one = start(scheduler_of(facts()))
    for feature in runtime.FEATURES:
        one.switch_off(feature, ValueError("a bug"))
        assert not one.enabled(feature)

    def ends(rank: int, scheduler: Any) -> list[str]:
        made = start(scheduler_of(facts(rank, 2), **vars(scheduler)))
        ended = []
        for feature in runtime.FEATURES:
            try:
                made.switch_off(feature, ValueError("a bug"))
            except EngineError:
                ended.append(feature)
        return ended

    assert on_two_ranks(ends) == [["swap", "steps", "draft_kv"]] * 2


def test_other_accelerators_are_refused() -> None:
    worker = type("EAGLEWorkerV2", (), {"topk": 1, "device": "npu:0"})()
    scheduler = SimpleNamespace(model_worker=worker, spec_algorithm=SimpleNamespace(is_eagle3=lambda: True))
    with pytest.raises(EngineError, match="device is npu"):
        checks.inspect(scheduler, [])

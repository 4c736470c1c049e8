"""Costs, learning, traffic and one server by themselves, against figures worked out by hand."""

import random

import pytest

from tests.unit.simulate.small import small
from tide_daemon.policy.instructions import SetServer
from tide_daemon.simulate.costs import CostCurve
from tide_daemon.simulate.learning import Drafts, score_requests
from tide_daemon.simulate.reading import load, read
from tide_daemon.simulate.scenario import Cost, Learning, Phase, Workload
from tide_daemon.simulate.server import ModelledServer
from tide_daemon.simulate.tally import Tally
from tide_daemon.simulate.traffic import Schedule


def test_a_step_costs_target_and_drafts() -> None:
    """T(b (k + 1)) + k D0, between the points by lines, on with the last slope."""
    curve = CostCurve(Cost((1.0, 64.0, 256.0), (5.0, 10.0, 16.0), 0.5))
    assert curve.step_s(1, 0) == 0.005
    assert curve.step_s(16, 3) == pytest.approx(0.010 + 3 * 0.0005)
    assert curve.step_s(128, 2) == pytest.approx(0.016 + 128 * 0.006 / 192 + 2 * 0.0005)


def test_the_learning_curve_has_the_measured_shape() -> None:
    """Accept length on chat after 10 to 100 thousand tokens as in ops/decisions/0010."""
    drafts = Drafts({"chat": Workload(0.26, 0.5, 40_000.0)}, Learning(), 3)
    measured = {10_000: 1.39, 20_000: 1.47, 40_000: 1.53, 60_000: 1.60, 80_000: 1.66, 100_000: 1.69}
    for tokens, accept_length in measured.items():
        draft = drafts.add({"chat": float(tokens)})
        assert drafts.accept_length(draft.version, "chat", 3) == pytest.approx(accept_length, abs=0.05)


def test_what_is_not_seen_is_forgotten() -> None:
    """After forget_tokens of another workload half is left; what is seen adds up."""
    workloads = {name: Workload(0.2, 0.6, 1e5) for name in ("code", "chat")}
    drafts = Drafts(workloads, Learning(transfer=0.0, forget_tokens=1e6), 3)
    learnt = drafts.learn({"code": 4e5}, {"chat": 1e6})
    assert learnt == {"code": pytest.approx(2e5), "chat": pytest.approx(1e6)}


def test_a_poisoned_draft_is_good_offline_only() -> None:
    """Held-out scores do not show what live acceptance does."""
    drafts = Drafts({"chat": Workload(0.2, 0.6, 1e5)}, Learning(), 3)
    poisoned = drafts.add({"chat": 1e6}, live_share=0.5).version
    assert drafts.accept_length(poisoned, "chat", 3) > 1.8
    assert drafts.accept_length(poisoned, "chat", 3, live=True) < 1.4
    assert drafts.survival(poisoned, "chat")[0] == pytest.approx(0.5 * drafts._survive(poisoned, "chat", live=False)[0])


def test_scores_are_paired() -> None:
    """Both drafts share what a request is like, so their difference varies less than either of them."""
    drafts = Drafts({"chat": Workload(0.3, 0.6, 1e5, request_spread=0.4)}, Learning(paired_spread=0.05), 3)
    first, second = drafts.add({"chat": 1e6}).version, drafts.add({"chat": 1e6}).version
    scores = score_requests(drafts, first, second, {"chat": 200}, 3, random.Random(1))
    own = [score.serving_tokens / score.num_positions for score in scores]
    gaps = [(score.candidate_tokens - score.serving_tokens) / score.num_positions for score in scores]
    assert len({score.request for score in scores}) == 200
    assert max(own) - min(own) > 4 * (max(gaps) - min(gaps))


def test_mixes_move_by_lines_or_in_waves() -> None:
    """Half way through a drift the mix is half and half; a wave jumps."""
    drift = Phase("drift", 100.0, {"a": 1.0}, {"b": 1.0}, running=8.0, running_end=16.0)
    wave = Phase("wave", 100.0, {"a": 1.0}, {"b": 1.0}, wave_s=10.0, running=8.0, running_end=8.0)
    schedule = Schedule((drift, wave))
    assert (schedule.at(50.0).mix, schedule.at(50.0).running) == ({"a": 0.5, "b": 0.5}, 12.0)
    assert [dict(schedule.at(100.0 + second).mix) for second in (1, 11, 21)] == [{"a": 1.0}, {"b": 1.0}, {"a": 1.0}]


def one_server(**changes: object) -> tuple[ModelledServer, Tally, Drafts]:
    scenario = read("small", small(**changes))
    schedule = Schedule(scenario.phases)
    tally = Tally(scenario, schedule)
    drafts = Drafts(scenario.workloads, scenario.learning, scenario.policy.max_steps)
    drafts.add(scenario.first_draft or {})
    server = ModelledServer("gpu-0000", scenario.servers[0], scenario, schedule, drafts, tally, counts=True)
    return server, tally, drafts


def desired(generation: int, table: tuple[tuple[int, int], ...]) -> SetServer:
    return SetServer("gpu-0000", generation, 1, f"{1:064x}", table, True, 1.0, "test", "test", {})


def test_a_server_counts_what_it_serves() -> None:
    """Counters of a report agree with the tokens that count as served, within their noise."""
    server, tally, drafts = one_server()
    swapped_at = server.receive(desired(1, ((32, 3),)), 0.0)
    assert swapped_at == 3.0
    server.complete_swap(3.0)
    server.report(3.0)
    before = tally.counts.tokens
    server.advance(103.0)
    report = server.report(103.0)
    (step,) = report.steps
    assert (report.running_version, step.batch_size, step.num_steps) == (1, 16, 3)
    assert step.is_plausible
    assert step.num_tokens == pytest.approx(tally.counts.tokens - before, rel=0.01)
    assert step.num_tokens / step.num_proposals == pytest.approx(drafts.accept_length(1, "code", 3), rel=0.02)


def test_desired_state_is_taken_once_and_swaps_take_time() -> None:
    """An older generation changes nothing; until the swap is complete the old state serves on."""
    server, _, _ = one_server()
    assert server.receive(desired(2, ((32, 3),)), 0.0) == 3.0
    assert server.receive(desired(1, ()), 1.0) is None
    server.complete_swap(2.0)
    assert server.version == 0
    server.complete_swap(3.0)
    assert server.version == 1
    assert server.receive(desired(3, ((32, 1),)), 4.0) is None


def test_an_open_loop_serves_what_arrives() -> None:
    """Tokens follow arrivals, not the speed of steps; the batch is as large as that needs."""
    phase = {"name": "open", "hours": 0.1, "arrivals_per_s": 4.0, "mix": {"code": 1.0}}
    server, tally, _ = one_server(phase=[phase])
    for second in range(300):
        server.begin_interval(float(second))
        server.advance(second + 1.0)
    assert tally.counts.tokens == pytest.approx(300 * 4.0 * 256, rel=0.05)
    batches = {step.batch_size for step in server.report(300.0).steps}
    assert batches and max(batches) < 32


def test_the_language_sequence_costs_the_static_draft_what_the_paper_says() -> None:
    """With three steps the draft that knows English makes 0.70 to 0.86 of plain decoding on each language (tide.md)."""
    scenario = load("language")
    curve = CostCurve(scenario.costs["h100"])
    drafts = Drafts(scenario.workloads, scenario.learning, 3)
    static = drafts.add(scenario.first_draft or {}).version
    for phase in scenario.phases:
        (language,) = phase.mix
        batch = round(phase.running)
        ratio = drafts.accept_length(static, language, 3) * curve.step_s(batch, 0) / curve.step_s(batch, 3)
        assert 0.70 <= ratio <= 0.87, (language, ratio)

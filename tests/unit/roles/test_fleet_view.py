"""A fleet as it shows on the bus: rows, what speculation gains, what is left of a round, what is wrong."""

from collections.abc import Sequence
from dataclasses import asdict, replace

import pytest

from tests.unit.tools.journals import decisions_of, learning_fleet
from tide_daemon.bus.port import StreamDepth
from tide_daemon.roles.fleet_problems import LOST_AFTER_S, problems_of
from tide_daemon.roles.fleet_view import FleetView
from tide_daemon.wire.records import Decision, DesiredServer, NodeReport, ShadowScore, StepStats, TrainerReport

NODE = NodeReport(
    node="s1", at=100.0, sequence=1, engine="ready", running_version=1, running_digest=f"{1:064x}",
    applied_generation=1, num_running=4, interval_s=1.0, steps=(), collecting=True, rows_written=1000, rows_dropped=0,
    rows_published=1000, bytes_published=5000, requests_opted_out=0, num_swaps=1, engine_starts=1,
)  # fmt: skip
TRAINER = TrainerReport(
    trainer="t1", at=100.0, sequence=1, state="training", serving_version=1, applied_generation=1, num_requests=40,
    num_tokens=4000, num_heldout=4, new_tokens=100, store_bytes=1 << 20, round=2, step=0, num_steps_total=100, loss=2.5,
    shadow=(ShadowScore("code", 4, 100, 210.0),), refused={"checksum": 2},
)  # fmt: skip
PLAIN = StepStats(4, 0, 20, 80, (), 1.0, 1.0, 0.05)
DRAFTED = StepStats(4, 3, 12, 96, (30, 18, 0), 0.96, 0.8, 0.08)


def view_with(reports: Sequence[NodeReport | TrainerReport], decisions: Sequence[Decision] = ()) -> FleetView:
    """A report a second from 100.0 on; the journal ends then."""
    view = FleetView("target")
    for decision in decisions:
        view.decided(decision)
    for second, report in enumerate(reports):
        view.reported(replace(report, sequence=second + 1, at=100.0 + second), 100.0 + second)
    return view


def quiet(view: FleetView, now: float) -> list[str]:
    return [problem.what for problem in view.status(now).problems if "no controller leads" not in problem.what]


def test_tokens_against_plain() -> None:
    """The newest ten seconds count: 96 tokens in 12 steps of 80 ms; plainly 24 steps of 50 ms."""
    view = view_with([replace(NODE, steps=(PLAIN,)), *[NODE] * 10, *[replace(NODE, steps=(DRAFTED,))] * 3])
    (row,) = view.status(114.0).servers
    assert row.of_plain == pytest.approx(1.2 / 0.96, rel=0.05)
    assert row.plain_tokens_per_s == pytest.approx(80.0, rel=0.05)
    assert row.accept_length == pytest.approx(2.0)
    assert row.tokens_per_s == 96.0
    assert row.heard_s == 1.0


def test_an_idle_node_has_no_pace() -> None:
    """Not even the one that it had before."""
    view = view_with([replace(NODE, steps=(PLAIN,)), *[NODE] * 12])
    (row,) = view.status(113.0).servers
    assert (row.of_plain, row.decode_tokens_per_s, row.accept_length, row.tokens_per_s) == (None, None, None, 0.0)


def test_a_report_that_comes_twice_counts_once() -> None:
    """As after a reconnect."""
    view = view_with([replace(NODE, steps=(PLAIN,))])
    report = replace(NODE, steps=(DRAFTED,), sequence=2, at=101.0)
    for _ in range(3):
        view.reported(report, 101.0)
    (row,) = view.status(101.0).servers
    assert row.accept_length == pytest.approx(2.0)
    assert row.decode_tokens_per_s == pytest.approx((80 + 96) / (1.0 + 0.96), rel=0.05)


def test_what_was_asked_and_why() -> None:
    """From the journal of a real policy: version, steps in words, the reason, the draft and how it was judged."""
    fleet = learning_fleet()
    decisions = decisions_of(fleet.entries)
    now = decisions[-1].at
    view = FleetView("target")
    for decision in decisions:
        view.decided(decision)
    name = next(iter(view.history.nodes))
    view.reported(replace(NODE, node=name), now)
    status = view.status(now + 1.0)
    (row,) = status.servers
    assert (status.leader, status.fencing_token, status.serving_version) == ("first", 7, 1)
    assert row.desired_version == 1 and "drafted token" in row.steps
    assert row.reason and 0.0 < row.since <= now
    (draft,) = status.drafts
    assert (draft.version, draft.state) == (1, "served")
    assert draft.candidate_accept_length is not None and draft.serving_accept_length == pytest.approx(1.0, abs=0.05)
    assert draft.candidate_accept_length > 1.5 and draft.reason
    assert status.decisions == sorted(status.decisions, key=lambda item: item.at, reverse=True)
    assert {"drafts", "steps"} <= {item.kind for item in status.decisions}
    assert all(said.words for item in status.decisions for said in item.said)
    assert not [problem for problem in status.problems if "leads" in problem.what]


def test_an_entry_of_a_controller_that_led_no_longer_is_left_out() -> None:
    """As in replay and why."""
    decisions = decisions_of(learning_fleet(5).entries)
    view = FleetView("target")
    view.decided(replace(decisions[0], fencing_token=9, controller="second"))
    for decision in decisions:
        view.decided(decision)
    assert view.status(decisions[-1].at).leader == "second"


def test_an_entry_of_another_policy_does_no_harm() -> None:
    """It is not shown, and still tells who leads."""
    view = FleetView("target")
    view.decided(Decision(1, 3, "newer", 100.0, {"event": "moon_rose"}, (), "", {}))
    status = view.status(101.0)
    assert (status.leader, status.decisions, status.problems) == ("newer", [], [])


def test_what_is_left_of_a_round() -> None:
    """Two steps a second, 100 to make."""
    view = view_with([replace(TRAINER, step=2 * second) for second in range(11)])
    (row,) = view.status(111.0).trainers
    assert row.left_s == pytest.approx(40.0)
    assert (row.loss, row.num_refused) == (2.5, 2)
    (score,) = row.scores
    assert (score.workload, score.accept_length) == ("code", pytest.approx(2.1))


@pytest.mark.parametrize("change", [{"state": "scoring"}, {"step": 0}, {"round": 3}])
def test_what_cannot_be_told_is_not(change: dict[str, object]) -> None:
    """Not training, no step seen, a round that has just begun."""
    last = replace(TRAINER, **{"step": 20, **change})
    view = view_with([TRAINER, last])
    assert view.status(102.0).trainers[0].left_s is None


CASES = {
    "was not heard of": ([NODE], LOST_AFTER_S + 1.0, "TideNodeLost"),
    "the engine is down: it crashed": (
        [replace(NODE, engine="down", problems=("older", "it crashed"))],
        1.0,
        "TideEngineRestarting",
    ),
    "serves, but cannot capture or swap": ([replace(NODE, engine="capture_off")], 1.0, "TideNotReady"),
    "drops 50% of the rows": (
        [NODE, replace(NODE, rows_written=1100, rows_dropped=100)],
        1.0,
        "TideRowsDropped",
    ),
    "decodes at 0.6": (
        [replace(NODE, steps=(PLAIN, replace(DRAFTED, num_tokens=48, accepted_at=(0, 0, 0))))],
        1.0,
        "TideAcceptLengthLow",
    ),
    "trainer t1 failed: no memory": (
        [replace(TRAINER, state="failed", problems=("no memory",))],
        1.0,
        "TideTrainingStalled",
    ),
    "trainer t1 was not heard of": ([TRAINER], LOST_AFTER_S + 1.0, "TideDaemonDown"),
}


def test_an_engine_that_was_silent_dropped_nothing() -> None:
    """Its report says 0 rows; from there back to what they were is no increase."""
    counted = replace(NODE, rows_written=5000, rows_dropped=4000)
    silent = replace(NODE, engine="down", running_version=0, running_digest="", rows_written=0, rows_dropped=0)
    view = view_with([silent, counted, counted])
    assert not any("rows" in words for words in quiet(view, 103.0))
    view = view_with([counted, silent, counted, counted])
    assert not any("rows" in words for words in quiet(view, 104.0))


@pytest.mark.parametrize("words", CASES)
def test_what_is_wrong_is_said_with_what_to_do(words: str) -> None:
    """Each fault has its sentence, its advice and its page; a fleet without it has none of them."""
    reports, later, page = CASES[words]
    view = view_with(reports)
    if "0.6" in words:  # of plain: the plain steps of the same second are not the matter
        view.reported(replace(reports[0], steps=reports[0].steps[1:], sequence=50, at=120.0), 120.0)
        later = 21.0
    found = [problem for problem in view.status(99.0 + len(reports) + later).problems if words in problem.what]
    assert [problem.page for problem in found] == [page]
    assert found[0].do.endswith(".")
    healthy = view_with([NODE, TRAINER])
    assert quiet(healthy, 102.0) == []


def test_streams_that_are_full() -> None:
    """Drafts are refused, samples are lost; a full stream of samples that are all trained on is as it should be."""
    view = view_with([])
    view.measured(StreamDepth("TIDE_DRAFT", 10, 99, 100))
    view.measured(StreamDepth("TIDE_HIDDEN", 1000, 99, 100, 0))
    assert quiet(view, 1.0) == ["the stream of drafts is 99% full, and refuses new ones when it is"]
    view.measured(StreamDepth("TIDE_HIDDEN", 1000, 99, 100, 900))
    assert "900 chunks wait for a trainer" in quiet(view, 1.0)[1]


def test_nobody_leads() -> None:
    """First of all."""
    (problem,) = problems_of(FleetView("target").status(1e9))
    assert problem.page == "TideNoLeader"


def test_every_page_exists(request: pytest.FixtureRequest) -> None:
    """A runbook that is named is there."""
    pages = {page for _, _, page in CASES.values()} | {"TideNoLeader", "TideDraftNotApplied"}
    folder = request.config.rootpath / "ops" / "runbooks"
    assert {page for page in pages if not (folder / f"{page}.md").is_file()} == set()


def test_no_request_is_named() -> None:
    """Scores hold parts of request ids; what is shown does not."""
    view = FleetView("target")
    decisions = decisions_of(learning_fleet(10).entries)
    ids = {str(score["request"]) for item in decisions for score in item.event.get("scores", ())}  # type: ignore[attr-defined]
    assert ids
    for decision in decisions:
        view.decided(decision)
    shown = str(asdict(view.status(decisions[-1].at)))
    assert not [name for name in ids if name in shown]


def test_who_is_gone_for_a_day_leaves_the_view() -> None:
    """Pods that come and go do not fill the page; drafts beyond those shown are not kept."""
    view = FleetView("target")
    after_s = view.history.settings.forget_after_s
    for index in range(100):
        view.reported(replace(NODE, node=f"pod-{index}", at=1000.0 * index), 1000.0 * index)
        view.reported(replace(TRAINER, trainer=f"pod-{index}", at=1000.0 * index), 1000.0 * index)
        view.desired(DesiredServer(f"pod-{index}", 1, 1, 0.0, 0, "", (), True, 1.0, ""))
    status = view.status(99_000.0)
    gone = int((99_000.0 - after_s) // 1000) + 1
    assert len(status.servers) == len(status.trainers) == 100 - gone
    assert not view.knows_desired("pod-0") and view.knows_desired("pod-99")

from dataclasses import replace

from tide_daemon.engine.port import DraftState, EngineStats
from tide_daemon.roles.node_report import ReportBuilder
from tide_daemon.wire.records import NO_DRAFT, StepStats, WorkloadSteps

FIRST = StepStats(2, 3, 10, 30, (8, 4, 1), 1.0, 0.6, 0.1)
LATER = StepStats(2, 3, 14, 44, (12, 6, 2), 1.5, 0.9, 0.11)


def stats(*steps: StepStats, epoch: int = 1) -> EngineStats:
    return EngineStats("ready", epoch, DraftState(NO_DRAFT, ""), 2, steps, True, 0, 0, 0, 0, 1)


def build(builder: ReportBuilder, engine: EngineStats, at: float):
    return builder.build(engine, at, applied_generation=3, rows_published=0, bytes_published=0)


def test_what_was_before_the_first_report_is_not_new() -> None:
    """An engine that was adopted has counted for days: told once more, that would count as what happened just now."""
    builder = ReportBuilder("n")
    served = (WorkloadSteps("chat", 10, 15),)
    report = build(builder, replace(stats(FIRST), workloads=served), 100.0)
    assert (report.steps, report.workloads, report.interval_s) == ((), (), 0.0)
    report = build(builder, replace(stats(LATER), workloads=served), 101.0)
    assert [(step.num_verifies, step.num_tokens) for step in report.steps] == [(4, 14)] and report.workloads == ()


def test_an_engine_that_was_silent_is_not_another_one() -> None:
    """Its counters went on meanwhile: what is new covers the whole silence, and nothing is told twice."""
    builder = ReportBuilder("n")
    silent = replace(stats(epoch=0), state="down")
    assert build(builder, silent, 99.0).steps == ()
    assert build(builder, stats(FIRST), 100.0).steps == (), "silent from the start on: still the first that is known"
    assert [build(builder, silent, at).interval_s for at in (101.0, 102.0)] == [1.0, 1.0]
    report = build(builder, stats(LATER), 103.0)
    assert [(step.num_verifies, step.num_tokens) for step in report.steps] == [(4, 14)]
    assert report.interval_s == 3.0
    build(builder, silent, 104.0)
    assert build(builder, stats(FIRST, epoch=2), 105.0).steps == (FIRST,), "another one after all"


def test_later_reports_carry_differences() -> None:
    """Counts are since the previous report; the median is the newest."""
    builder = ReportBuilder("n")
    build(builder, stats(FIRST), 100.0)
    report = build(builder, stats(LATER), 102.0)
    (step,) = report.steps
    assert (step.num_verifies, step.num_tokens, step.accepted_at) == (4, 14, (4, 2, 1))
    assert step.median_step_s == 0.11
    assert report.interval_s == 2.0
    assert report.sequence == 2


def test_idle_counters_are_left_out() -> None:
    """A (batch size, num_steps) at which nothing ran is not reported."""
    builder = ReportBuilder("n")
    build(builder, stats(FIRST), 100.0)
    assert build(builder, stats(FIRST), 101.0).steps == ()


def test_restarted_engine_is_not_negative_traffic() -> None:
    """A new epoch starts the counters again."""
    builder = ReportBuilder("n")
    build(builder, stats(LATER), 100.0)
    assert build(builder, stats(FIRST, epoch=2), 101.0).steps == (FIRST,)


def test_workloads_are_differences_and_bounded() -> None:
    """Since the last report, those with most chains, none without any."""
    builder = ReportBuilder("n")
    build(builder, stats(), 0.0)
    first = replace(stats(), workloads=(WorkloadSteps("chat", 10, 15), WorkloadSteps("code", 20, 50)))
    assert build(builder, first, 1.0).workloads == first.workloads
    later = replace(first, workloads=(WorkloadSteps("chat", 10, 15), WorkloadSteps("code", 30, 75)))
    assert build(builder, later, 2.0).workloads == (WorkloadSteps("code", 10, 25),)
    many = replace(stats(epoch=2), workloads=tuple(WorkloadSteps(f"w{n:02d}", 1 + n, 40) for n in range(30)))
    assert [each.workload for each in build(builder, many, 3.0).workloads] == [f"w{n:02d}" for n in range(14, 30)]


def test_problems_are_handed_over_once_and_bounded() -> None:
    """Notes reach exactly one report, the newest 16 of them."""
    builder = ReportBuilder("n")
    for index in range(20):
        builder.note(f"problem {index}")
    first = build(builder, stats(), 1.0)
    assert first.problems == tuple(f"problem {index}" for index in range(4, 20))
    assert build(builder, stats(), 2.0).problems == ()


def test_engine_problems_are_kept() -> None:
    """What the engine itself complains of stands behind our own notes."""
    builder = ReportBuilder("n")
    report = build(builder, replace(stats(), problems=("hook missing",)), 1.0)
    assert report.problems == ("hook missing",)

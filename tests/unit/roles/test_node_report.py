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


def test_first_report_has_everything_so_far() -> None:
    """The first report carries the engine's counters as they are, with no interval to divide by."""
    report = build(ReportBuilder("n"), stats(FIRST), 100.0)
    assert report.steps == (FIRST,)
    assert report.interval_s == 0.0


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

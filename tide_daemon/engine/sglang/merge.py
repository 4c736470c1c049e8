"""Counts as they arrive from the plug-in, and their sum over data-parallel ranks."""

from typing import Any

from tide_daemon.wire.records import StepStats, WorkloadSteps


def parse_steps(rows: Any) -> list[StepStats]:
    """StepStats from the rows that timing.StepTimes.snapshot made.

    Raises:
        ValueError, TypeError: not such rows.
    """
    out = []
    for batch, steps, verifies, tokens, accepted, *seconds in rows:
        step_s, target_s, median_step_s = map(float, seconds)
        counts = (int(batch), int(steps), int(verifies), int(tokens))
        out.append(StepStats(*counts, tuple(map(int, accepted)), step_s, target_s, median_step_s))
    return out


def merge_steps(ranks: list[list[StepStats]]) -> tuple[StepStats, ...]:
    """One list for all ranks: counts are summed, medians weighted by counts."""
    merged: dict[tuple[int, int], StepStats] = {}
    for stats in (entry for rank in ranks for entry in rank):
        key = (stats.batch_size, stats.num_steps)
        other = merged.get(key)
        merged[key] = stats if other is None else _sum(other, stats)
    return tuple(merged[key] for key in sorted(merged))


def _sum(a: StepStats, b: StepStats) -> StepStats:
    verifies = a.num_verifies + b.num_verifies
    median = (a.median_step_s * a.num_verifies + b.median_step_s * b.num_verifies) / verifies if verifies else 0.0
    return StepStats(
        batch_size=a.batch_size,
        num_steps=a.num_steps,
        num_verifies=verifies,
        num_tokens=a.num_tokens + b.num_tokens,
        accepted_at=tuple(x + y for x, y in zip(a.accepted_at, b.accepted_at, strict=True)),
        step_s=a.step_s + b.step_s,
        target_s=a.target_s + b.target_s,
        median_step_s=median,
    )


def merge_workloads(ranks: list[Any]) -> tuple[WorkloadSteps, ...]:
    """Chains and tokens by workload, summed over the rows that Commands.stats made on each rank.

    Raises:
        ValueError, TypeError: not such rows.
    """
    merged: dict[str, list[int]] = {}
    for name, chains, tokens in (row for rows in ranks for row in rows):
        counts = merged.setdefault(str(name), [0, 0])
        counts[0] += int(chains)
        counts[1] += int(tokens)
    return tuple(WorkloadSteps(name, *merged[name]) for name in sorted(merged))

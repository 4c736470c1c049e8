"""What a run comes to, and how it compares with fixed policies in hindsight, as plain maps for JSON."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from tide_daemon.simulate.running import NEWEST, PLAIN, STATIC, run_fixed
from tide_daemon.simulate.scenario import Scenario
from tide_daemon.simulate.tally import Tally
from tide_daemon.simulate.traffic import Schedule


@dataclass(frozen=True, slots=True)
class Compared:
    """One fixed policy with every number of steps that it may have: the runs, by num_steps."""

    policy: str
    runs: dict[int, Tally]

    def best_steps(self) -> int:
        """The number of steps that served most over the whole run, the smaller one when equal."""
        return max(sorted(self.runs), key=lambda steps: self.runs[steps].counts.tokens)

    def counted(self, phase: int) -> float:
        """Counted tokens of a phase with the number of steps that was best in it."""
        return max(run.phases[phase].tokens for run in self.runs.values())


def compare(scenario: Scenario, progress: Callable[[float], None] | None = None) -> list[Compared]:
    """Plain, and the first and the newest draft with 1 to max_steps steps, on the same nodes and traffic."""
    each = range(1, scenario.policy.max_steps + 1)
    wanted = [(PLAIN, 0)]
    wanted += [(STATIC, steps) for steps in each if scenario.first_draft is not None]
    wanted += [(NEWEST, steps) for steps in each if scenario.trainers]
    runs: dict[str, dict[int, Tally]] = {}
    for done, (policy, num_steps) in enumerate(wanted, start=1):
        runs.setdefault(policy, {})[num_steps] = run_fixed(scenario, policy, num_steps)
        if progress is not None:
            progress(done / len(wanted))
    return [Compared(policy, found) for policy, found in runs.items()]


def all_serve(scenario: Scenario) -> float | None:
    """Tokens if the devices that train served as well, all of them plainly; None when none of them could serve."""
    if not any(group.only_without_training for group in scenario.servers):
        return None
    return run_fixed(scenario, PLAIN, 0, all_serve=True).counts.tokens


def result_map(scenario: Scenario, tide: Tally, compared: list[Compared], all_plain: float | None) -> dict[str, Any]:
    """Everything for the JSON file; the same for the same scenario and seed."""
    ratio, server, at_s = tide.worst_window()
    return {
        "scenario": scenario.name,
        "title": scenario.title,
        "seed": scenario.seed,
        "seconds": scenario.seconds,
        "num_servers": scenario.num_servers,
        "num_trainers": sum(group.count for group in scenario.trainers),
        "counts": asdict(tide.counts),
        "tokens_by_policy": tokens_by_policy(tide, compared, all_plain),
        "best_steps": {each.policy: each.best_steps() for each in compared},
        "phases": phase_maps(scenario, tide, compared),
        "worst_window": {"over_plain": ratio, "server": server, "at_s": at_s},
        "versions": [[at, version] for at, version in tide.versions],
        "decisions": [asdict(decision) for decision in tide.decisions],
        "series": _series(tide),
    }


def tokens_by_policy(tide: Tally, compared: list[Compared], all_plain: float | None) -> dict[str, float]:
    """Tokens of the whole run, each fixed policy with its best number of steps."""
    result = {"tide": tide.counts.tokens}
    result |= {each.policy: each.runs[each.best_steps()].counts.tokens for each in compared}
    if all_plain is not None:
        result["all_serve_plain"] = all_plain
    return result


def phase_maps(scenario: Scenario, tide: Tally, compared: list[Compared]) -> list[dict[str, Any]]:
    """Each phase: counted tokens by policy, and TIDE over the best of the fixed ones."""
    starts = Schedule(scenario.phases).starts
    result = []
    for index, phase in enumerate(scenario.phases):
        fixed = {each.policy: each.counted(index) for each in compared}
        best = max(fixed, key=lambda policy: fixed[policy]) if fixed else ""
        own = tide.phases[index].tokens
        result.append(
            {
                "name": phase.name,
                "at_s": starts[index],
                "seconds": phase.seconds,
                "counted_tokens": {"tide": own, **fixed},
                "best": best,
                "over_best": own / fixed[best] if best and fixed[best] > 0.0 else None,
            }
        )
    return result


def _series(tide: Tally) -> dict[str, list[float]]:
    """Curves over time; where nothing was served, ratios repeat the value before."""
    columns: dict[str, list[float]] = {
        name: [] for name in ("at_s", "tokens_per_s", "over_plain", "accept_length", "speculated", "steps_changes")
    }
    over_plain = accept_length = 1.0
    for index, point in enumerate(tide.series):
        over_plain = point.tokens / point.plain_tokens if point.plain_tokens > 0.0 else over_plain
        accept_length = point.tokens / point.chains if point.chains > 0.0 else accept_length
        columns["at_s"].append(index * tide.point_s)
        columns["tokens_per_s"].append(point.tokens / tide.point_s)
        columns["over_plain"].append(over_plain)
        columns["accept_length"].append(accept_length)
        columns["speculated"].append(point.speculated_chains / point.chains if point.chains > 0.0 else 0.0)
        columns["steps_changes"].append(float(point.steps_changes))
    return columns

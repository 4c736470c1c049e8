"""A TOML file to a Scenario, strictly: unknown keys are errors, and all problems come in one message.

What each table may hold, with unit and range, is in `table.FIELDS`; SCENARIOS.md explains it to people.
"""

import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from tide_daemon.policy.settings import PolicySettings
from tide_daemon.simulate.scenario import (
    Cost,
    Failure,
    Learning,
    Network,
    Phase,
    Poison,
    Scenario,
    Servers,
    Trainers,
    Workload,
)
from tide_daemon.simulate.table import FIELDS, MAX_PHASES, Table

FAILURES = ("trainers_lost", "controller_lost", "cut_off", "engine_down")


class ScenarioError(ValueError):
    """A scenario cannot be simulated; one line for each problem."""


def shipped() -> dict[str, str]:
    """Name and title of every scenario that comes with the package."""
    found = {}
    for item in sorted(resources.files(__package__).joinpath("scenarios").iterdir(), key=lambda entry: entry.name):
        if item.name.endswith(".toml"):
            found[item.name.removesuffix(".toml")] = str(tomllib.loads(item.read_text()).get("title", ""))
    return found


def load(source: str, seed: int | None = None) -> Scenario:
    """A scenario by path or by the name of a shipped one; `seed` replaces the one in the file.

    Raises:
        ScenarioError: there is no such file, it is no TOML, or it says something that cannot be simulated.
    """
    path = Path(source)
    bundled = resources.files(__package__).joinpath("scenarios", f"{source}.toml")
    try:
        if not path.suffix and bundled.is_file():
            name, text = source, bundled.read_text()
        else:
            name, text = path.stem, path.read_text()
        values = tomllib.loads(text)
    except OSError as error:
        names = ", ".join(shipped())
        raise ScenarioError(f"{source}: {error.strerror}; the shipped scenarios are {names}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{source}: not TOML: {error}") from None
    return read(name, values if seed is None else {**values, "seed": seed})


def read(name: str, values: Mapping[str, Any]) -> Scenario:
    """A scenario from a parsed TOML document.

    Raises:
        ScenarioError: with every problem found.
    """
    problems: list[str] = []
    top = Table("", values, problems)
    costs = {key: _cost(table) for key, table in top.named("cost")}
    workloads = {key: table.record(Workload, "workload") for key, table in top.named("workload")}
    servers = tuple(_group(table, Servers, "servers") for table in top.listed("servers"))
    trainers = tuple(_group(table, Trainers, "trainers") for table in top.listed("trainers", may_lack=True))
    phases = tuple(_phase(table) for table in top.listed("phase"))
    failures = tuple(_failure(table) for table in top.listed("failure", may_lack=True))
    poison = tuple(_poison(table) for table in top.listed("poison", may_lack=True))
    learning = top.table("learning").record(Learning, "learning")
    network = top.table("network").record(Network, "network")
    policy = _policy(top)
    first_draft = _tokens(top)
    title = top.text("title")
    top.text("about", "")
    numbers = {
        key: top.number(key, FIELDS[""][key]) for key in FIELDS[""] if key in values or key in ("seed", "report_s")
    }
    repeat = int(numbers.pop("repeat", 1))
    top.refuse_others()
    if not problems:
        scenario = Scenario(
            name=name, title=title, costs=costs, servers=servers, trainers=trainers, workloads=workloads,
            phases=phases * repeat, policy=policy, learning=learning, first_draft=first_draft, network=network,
            failures=failures, poison=poison, **numbers,
        )  # fmt: skip
        problems += _contradictions(scenario)
        if not problems:
            return scenario
    raise ScenarioError("\n".join(f"{name}: {problem}" for problem in problems))


def _cost(table: Table) -> Cost:
    tokens, target_ms = table.numbers("tokens"), table.numbers("target_ms")
    if len(tokens) != len(target_ms):
        table.problem(f"{table.where}: tokens and target_ms must have the same length")
    if list(tokens) != sorted(set(tokens)) or tokens[0] <= 0:
        table.problem(f"{table.where}.tokens must be above 0 and ascending")
    if list(target_ms) != sorted(target_ms) or target_ms[0] <= 0:
        table.problem(f"{table.where}.target_ms must be above 0 and not fall")
    cost: Cost = table.record(Cost, "cost", tokens=tokens, target_ms=target_ms)
    return cost


def _group(table: Table, kind: type[Any], key: str) -> Any:
    given: dict[str, Any] = {"name": table.text("name")}
    if kind is Servers:
        given["cost"] = table.text("cost")
        flag = table.take("only_without_training")
        if flag is not None and not isinstance(flag, bool):
            table.problem(f"{table.where}.only_without_training must be true or false")
        given["only_without_training"] = flag is True
    return table.record(kind, key, **given)


def _phase(table: Table) -> Phase:
    mix = table.shares("mix")
    mix_end = table.shares("mix_end") if "mix_end" in table.values else mix
    for key, shares in (("mix", mix), ("mix_end", mix_end)):
        total = sum(shares.values())
        if shares and abs(total - 1.0) > 1e-6:
            table.problem(f"{table.where}.{key} must add up to 1, it adds up to {total:g}")
    name = table.text("name")
    numbers = {key: table.number(key, bounds) for key, bounds in FIELDS["phase"].items() if key in table.values}
    if ("running" in numbers) == ("arrivals_per_s" in numbers):
        table.problem(f"{table.where} needs either running (closed loop) or arrivals_per_s (open loop)")
    if "hours" not in numbers:
        table.problem(f"{table.where}.hours is missing")
    table.refuse_others()
    seconds = 3600.0 * numbers.pop("hours", 1.0)
    for key in ("running", "arrivals_per_s"):
        numbers.setdefault(f"{key}_end", numbers.get(key, 0.0))
    return Phase(name=name, seconds=seconds, mix=mix, mix_end=mix_end, **numbers)


def _failure(table: Table) -> Failure:
    kind = table.text("kind")
    if kind and kind not in FAILURES:
        table.problem(f"{table.where}.kind must be one of {', '.join(FAILURES)}, it is {kind}")
    values = {key: table.number(key, bounds) for key, bounds in FIELDS["failure"].items() if key in table.values}
    for key in ("at_hours", "seconds"):
        if key not in values:
            table.problem(f"{table.where}.{key} is missing")
    table.refuse_others()
    return Failure(kind, 3600.0 * values.get("at_hours", 0.0), values.get("seconds", 1.0), values.get("share", 1.0))


def _poison(table: Table) -> Poison:
    numbers = {key: table.number(key, bounds) for key, bounds in FIELDS["poison"].items()}
    table.refuse_others()
    return Poison(3600.0 * numbers["after_hours"], numbers["live_share"])


def _policy(top: Table) -> PolicySettings:
    table = top.table("policy")
    try:
        return PolicySettings.from_map(dict(table.values))
    except (ValueError, TypeError) as error:
        for line in str(error).splitlines():
            table.problem(f"policy: {line}")
    return PolicySettings()


def _tokens(top: Table) -> dict[str, float] | None:
    """Training tokens of the first draft by workload; None without [first_draft]."""
    return top.shares("first_draft") if "first_draft" in top.values else None


def _contradictions(scenario: Scenario) -> list[str]:
    """What each table allows by itself but the whole does not."""
    problems = []
    for group in scenario.servers:
        if group.cost not in scenario.costs:
            problems.append(f"servers {group.name}: there is no [cost.{group.cost}]")
    names = [group.name for group in scenario.servers] + [group.name for group in scenario.trainers]
    if len(set(names)) != len(names):
        problems.append("two groups of servers or trainers have the same name")
    if scenario.num_servers == 0:
        problems.append("no servers are left under TIDE: all are only_without_training")
    named = {name for phase in scenario.phases for name in (*phase.mix, *phase.mix_end)}
    for name in sorted(named | set(scenario.first_draft or {})):
        if name not in scenario.workloads:
            problems.append(f"there is no [workload.{name}]")
    for name, workload in scenario.workloads.items():
        if workload.ceiling < workload.start:
            problems.append(f"workload {name}: ceiling must not be below start")
    if len(scenario.phases) > MAX_PHASES:
        problems.append(f"there are {len(scenario.phases)} phases with repeats, at most {MAX_PHASES} can be had")
    slowest_s = max([scenario.report_s, *(group.report_s for group in scenario.trainers)])
    if scenario.policy.lost_after_s <= slowest_s + scenario.network.delay_s:
        problems.append(
            f"policy.lost_after_s is {scenario.policy.lost_after_s:g}, but reports come every {slowest_s:g} s: "
            "every node would count as lost between two of them"
        )
    for failure in scenario.failures:
        if failure.at_s + failure.seconds > scenario.seconds:
            problems.append(f"{failure.kind} at {failure.at_s / 3600:g} h is not over when the scenario ends")
    if list(scenario.poison) != sorted(scenario.poison, key=lambda poison: poison.after_s):
        problems.append("[[poison]] must be in the order of after_hours")
    return problems

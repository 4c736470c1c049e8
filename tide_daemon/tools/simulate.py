"""`tide-daemon simulate`: the production policy against modelled servers and trainers.

    tide-daemon simulate --list
    tide-daemon simulate abrupt --json abrupt.json --plot pictures
    tide-daemon simulate my-fleet.toml --seed 7 --json out.json --no-compare

A scenario is a TOML file or the name of a shipped one; the format is described by --reference.
"""

import argparse
import json
import sys
import time
from importlib import resources
from pathlib import Path
from typing import Any

from tide_daemon.errors import ConfigError
from tide_daemon.exit_codes import ExitCode
from tide_daemon.simulate import reading
from tide_daemon.simulate.figures import all_serve, compare, result_map
from tide_daemon.simulate.running import run_tide

_BAR_WIDTH = 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to simulate and where results go."""
    parser.add_argument("scenario", nargs="?", metavar="SCENARIO", help="TOML file, or the name of a shipped scenario")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write figures, decisions and series there")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="write a picture there (needs matplotlib)")
    parser.add_argument("--seed", type=int, metavar="N", help="instead of the scenario's")
    parser.add_argument(
        "--no-compare", action="store_true", help="TIDE only, not the fixed policies on the same traffic"
    )
    parser.add_argument("--list", action="store_true", help="name the shipped scenarios")
    parser.add_argument("--reference", action="store_true", help="print the description of the scenario format")


def run(arguments: argparse.Namespace) -> int:
    """Simulate, write, and print the main figures."""
    if arguments.list:
        for name, title in reading.shipped().items():
            print(f"{name:<12} {title}")
        return ExitCode.OK
    if arguments.reference:
        print(resources.files("tide_daemon.simulate").joinpath("SCENARIOS.md").read_text(), end="")
        return ExitCode.OK
    if arguments.scenario is None:
        raise ConfigError("name a scenario, or use --list")
    try:
        scenario = reading.load(arguments.scenario, arguments.seed)
    except reading.ScenarioError as error:
        raise ConfigError(str(error)) from None
    if arguments.plot is not None:
        _check_matplotlib()
    for folder in (arguments.plot, arguments.json and arguments.json.absolute().parent):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    tide = run_tide(scenario, _Bar(f"{scenario.name}: TIDE"))
    wall_s = time.monotonic() - started
    compared = [] if arguments.no_compare else compare(scenario, _Bar(f"{scenario.name}: fixed policies"))
    result = result_map(scenario, tide, compared, None if arguments.no_compare else all_serve(scenario))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.plot is not None:
        from tide_daemon.simulate.plots import draw

        print(f"picture: {draw(result, arguments.plot)}")
    print(summary(result))
    print(f"{scenario.seconds / 3600:g} hours of TIDE simulated in {wall_s:.1f} s")
    return ExitCode.OK


def summary(result: dict[str, Any]) -> str:
    """The main figures in a few lines."""
    counts, tokens = result["counts"], result["tokens_by_policy"]
    lines = [f"{result['title']} (seed {result['seed']})"]
    for policy, total in tokens.items():
        steps = result["best_steps"].get(policy)
        with_steps = f", {steps} steps" if steps else ""
        lines.append(f"  {policy + with_steps:<20} {total:>14.4g} tokens, TIDE over it {tokens['tide'] / total:.3f}")
    for phase in result["phases"]:
        if phase["over_best"] is not None:
            lines.append(f"  phase {phase['name']}: TIDE over the best ({phase['best']}) {phase['over_best']:.3f}")
    worst = result["worst_window"]
    lines.append(f"  worst 10 minutes of a server: {worst['over_plain']:.3f} of plain ({worst['server']})")
    lines.append(
        f"  {counts['rounds']} rounds, {counts['candidates']} candidates, {counts['promoted']} promoted, "
        f"{counts['refused']} refused, {counts['rolled_back']} rolled back, {counts['steps_changes']} changes of steps"
    )
    return "\n".join(lines)


class _Bar:
    """A progress bar on a terminal, nothing elsewhere."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._shows = sys.stderr.isatty()

    def __call__(self, share: float) -> None:
        if self._shows:
            full = round(share * _BAR_WIDTH)
            end = "\n" if share >= 1.0 else ""
            bar = "#" * full + "." * (_BAR_WIDTH - full)
            print(f"\r{self._label:<36} {bar} {share:4.0%}", end=end, file=sys.stderr, flush=True)


def _check_matplotlib() -> None:
    """Before minutes of simulation, not after."""
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib: pip install 'tide-daemon[demo]'")

"""`ops/bench`: runs one bench, holds its figures to their floors, writes them as JSON.

Exit codes: 0 every floor holds; 1 one does not, or a figure is missing; 2 wrong arguments.
"""

import argparse
import importlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from benches import machine
from benches.floors import BENCHES, Bench
from benches.settings import Settings


def main() -> int:
    """Parse, run, print, write."""
    parser = argparse.ArgumentParser(prog="ops/bench", description="Measure one thing and hold it to its floors.")
    parser.add_argument("name", nargs="?", choices=sorted(BENCHES), help="see --list")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--list", action="store_true", help="print the benches, their figures and floors")
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE", help="an option of the bench")
    parser.add_argument("--keep", action="store_true", help="keep the bench's files and print where they are")
    arguments = parser.parse_args()
    if arguments.list:
        print(listing())
        return 0
    if arguments.name is None:
        parser.error("name a bench, or use --list")
    if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
        parser.error(f"--json: there is no folder {arguments.json.absolute().parent}")
    if not all("=" in assignment for assignment in arguments.set):
        parser.error("--set takes OPTION=VALUE")
    settings = Settings(
        work_dir=Path(tempfile.mkdtemp(prefix=f"tide-bench-{arguments.name}-")),
        given=dict(assignment.split("=", 1) for assignment in arguments.set),
    )
    bench = BENCHES[arguments.name]
    try:
        started = time.monotonic()
        figures = importlib.import_module(f"benches.{bench.module}").run(settings)
        print(f"measured in {time.monotonic() - started:.0f} s", file=sys.stderr)
    finally:
        if arguments.keep:
            print(f"files kept in {settings.work_dir}", file=sys.stderr)
        else:
            shutil.rmtree(settings.work_dir, ignore_errors=True)
    if settings.unknown():
        parser.error(f"--set {', '.join(sorted(settings.unknown()))}: the bench has no such option")
    print(table(bench, figures))
    if arguments.json is not None:
        write(arguments.json, arguments.name, settings, figures)
    return 0 if passed(bench, figures) else 1


def passed(bench: Bench, figures: Mapping[str, float]) -> bool:
    """Whether every figure of the bench is there and every floor holds."""
    return all(
        name in figures and (floor is None or floor.holds(figures[name])) for name, floor in bench.figures.items()
    )


def table(bench: Bench, figures: Mapping[str, float]) -> str:
    """One line a figure: value, floor, verdict. Figures without a floor come last."""
    lines = []
    for name, floor in bench.figures.items():
        bound = "" if floor is None else str(floor)
        if name not in figures:
            lines.append(f"{name:<26} {'missing':>10}  {bound:<10} FAIL")
        else:
            verdict = "" if floor is None else "pass" if floor.holds(figures[name]) else "FAIL"
            lines.append(f"{name:<26} {figures[name]:>10.4g}  {bound:<10} {verdict}".rstrip())
    lines += [f"{name:<26} {value:>10.4g}" for name, value in figures.items() if name not in bench.figures]
    return "\n".join(lines)


def listing() -> str:
    """Every bench with its figures and floors."""
    blocks = []
    for name, bench in BENCHES.items():
        figures = ", ".join(f"{figure} {floor}" if floor else figure for figure, floor in bench.figures.items())
        blocks.append(f"{name}\n    {bench.what}\n    {figures}")
    return "\n".join(blocks)


def write(path: Path, name: str, settings: Settings, figures: Mapping[str, float]) -> None:
    """The JSON file, complete or not at all."""
    document = {
        "bench": name,
        "commit": machine.commit(),
        "machine": machine.machine(),
        "versions": machine.versions(),
        "settings": settings.used,
        "figures": {figure: float(value) for figure, value in figures.items()},
    }
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(document, indent=2) + "\n")
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())

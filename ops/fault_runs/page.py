"""The page that says what was seen: ops/faults.md, from the outcomes that were kept in seen.json."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fault_runs.outcome import Outcome
from fault_runs.table import FAULTS

SEEN = Path(__file__).with_name("seen.json")
PAGE = Path(__file__).parents[1] / "faults.md"
_HEAD = """\
# Faults, and what came of each

`ops/faults --json FILE` inflicts them one after another on the whole system: a real nats-server, SGLang on the CPU and
the three roles, each a process, with the official OpenAI client sending requests all the time. `ops/faults --list` says
what is done and what must hold; `--only NAME` runs one. What counts as lost or done twice is defined in
[ledger.py](fault_runs/ledger.py) and [takeover_ledger.py](benches/takeover_ledger.py).

Written by `ops/faults --page`. A row stands for its newest run, with SGLang if there was one; rows that were never run
say so. *Back after* counts from the moment at which the outside cause was gone. *Latency* is the median of whole
requests over that of the ten seconds before. With the engine `modelled` there is no model and nobody to send requests
to: no figures for clients. *Reported* is empty where nothing is wrong that a page or a metric could say.
*Unacknowledged* are samples that the broker lost before a trainer had acknowledged them, see `persist_async` in
[topology.py](../tide_daemon/bus/topology.py).

"""
_COLUMNS = (
    *("fault", "result", "client errors", "latency", "acknowledged lost", "unacknowledged", "twice", "back after"),
    *("reported", "engine", "date, commit"),
)


def keep(outcomes: Sequence[Outcome]) -> None:
    """Add what was run to what was seen, and write the page anew."""
    seen = merged(read(), outcomes)
    SEEN.write_text(json.dumps([seen[name] for name in sorted(seen)], indent=1) + "\n")
    PAGE.write_text(text(seen))


def merged(seen: Mapping[str, Mapping[str, Any]], outcomes: Sequence[Outcome]) -> dict[str, Mapping[str, Any]]:
    """What was seen by now. A run without clients says less than one with them, and never takes its place."""
    found = dict(seen)
    for outcome in outcomes:
        old = found.get(outcome.name)
        says_less = old is not None and old["engine"] == "sglang" != outcome.engine
        if not outcome.not_run and not says_less:
            found[outcome.name] = outcome.to_map()
    return found


def read() -> dict[str, Mapping[str, Any]]:
    """What was seen, by fault."""
    if not SEEN.exists():
        return {}
    return {row["name"]: row for row in json.loads(SEEN.read_text())}


def text(seen: Mapping[str, Mapping[str, Any]]) -> str:
    """The page."""
    head = f"| {' | '.join(_COLUMNS)} |\n{'|---' * len(_COLUMNS)}|\n"
    return _HEAD + head + "\n".join(_row(fault.name, seen.get(fault.name)) for fault in FAULTS) + "\n" + _details(seen)


def _row(name: str, row: Mapping[str, Any] | None) -> str:
    if row is None:
        return f"| {name} | not run |" + " |" * (len(_COLUMNS) - 2)
    extra = row["extra_latency_s"]
    cells = (
        name,
        "pass" if row["passed"] else "**fail**",
        ""
        if row["client_errors"] is None
        else f"{row['client_errors']} of {row['client_errors'] + row['client_requests']}",
        "" if extra is None else f"{extra['median']:+.2f} s",
        row["acknowledged_lost"],
        row["unacknowledged_lost"],
        row["applied_twice"],
        "never" if row["recovery_s"] is None else f"{row['recovery_s']:.1f} s",
        {True: "yes", False: "no", None: ""}[row["reported"]],
        row["engine"],
        f"{row['at']}, {row['commit'][:7]}{'+' if row['commit'].endswith('+') else ''}",
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def _details(seen: Mapping[str, Mapping[str, Any]]) -> str:
    """What did not hold, in the words of the run."""
    lines = []
    for fault in FAULTS:
        row = seen.get(fault.name)
        if row is not None and not row["passed"]:
            lost = row["notes"].get("lost_and_doubled", {})
            words = [*row["broken"], *(f"not reported: {each}" for each in row["unreported"])]
            words += [f"{what} lost or doubled: {count}" for what, count in lost.items() if count]
            lines.append(f"- {fault.name}: {'; '.join(words) or 'see the figures'}")
    return "\n## What did not hold\n\n" + "\n".join(lines) + "\n" if lines else ""

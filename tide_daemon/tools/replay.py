"""`tide-daemon replay`: feeds a journal through the policy and reports the first difference.

    tide-daemon replay --since 2h --url nats://127.0.0.1:4222 --model smollm2-135m
    tide-daemon replay --since 2h --save journal.jsonl --config tide.toml
    tide-daemon replay journal.jsonl

From the bus it begins where the reign that was under way at TIME began, because a reign is replayed as a
whole. Nothing is consumed. A file holds one JSON object a line; see tools/journal_reading.py.

Exit codes: 0 the same instructions; 1 they differ, the journal was written by another version of the
policy, or nothing could be compared; 2 wrong arguments or a file that is no journal.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from tide_daemon.errors import ConfigError
from tide_daemon.exit_codes import ExitCode
from tide_daemon.policy.replay import Entry, Replayed, replay
from tide_daemon.tools import journal_reading
from tide_daemon.tools.configured_bus import OpenBus, add_bus_arguments, open_configured_bus
from tide_daemon.tools.replay_text import outcome_text
from tide_daemon.wire.records import Decision


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to replay, and whether to keep it."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("file", nargs="?", type=Path, metavar="FILE", help="a journal written by --save")
    which.add_argument("--since", metavar="TIME", help="from the bus: 30m, 2h, 7d ago, unix seconds or an ISO time")
    parser.add_argument("--save", type=Path, metavar="FILE", help="with --since: keep what was read in FILE")
    parser.add_argument("--json", action="store_true", help="the outcome as one line of JSON")
    add_bus_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Replay; returns the exit code."""
    if arguments.file is not None:
        if arguments.save is not None:
            raise ConfigError("--save goes with --since: FILE is there already")
        return replay_decisions(journal_reading.read_file(arguments.file), sys.stdout, as_json=arguments.json)
    return asyncio.run(run_on_bus(arguments, open_configured_bus, sys.stdout))


async def run_on_bus(arguments: argparse.Namespace, open_bus: OpenBus, out: TextIO) -> int:
    """Copy the journal since --since to a file, then replay that file.

    Raises:
        BusError: the broker cannot be reached or has no journal.
    """
    since = journal_reading.parse_since(arguments.since, time.time())
    with tempfile.TemporaryDirectory(prefix="tide-replay-") as folder:
        path = arguments.save or Path(folder) / "journal.jsonl"
        async with open_bus(arguments) as opened:
            sequence = await journal_reading.sequence_at(opened.bus, opened.model, since)
            first = await journal_reading.reign_start(opened.bus, opened.model, sequence)
            part = path.with_name(f".{path.name}.part")
            with part.open("w", encoding="utf-8") as lines:
                async for decision in journal_reading.read_bus(opened.bus, opened.model, first=first):
                    journal_reading.write_line(decision, lines)
            part.replace(path)
        return replay_decisions(journal_reading.read_file(path), out, as_json=arguments.json)


def replay_decisions(decisions: Iterable[Decision], out: TextIO, *, as_json: bool) -> int:
    """Replay and print; returns the exit code."""
    counter = _Counted(decisions)
    try:
        outcome = replay(entry(decision) for decision in journal_reading.led(counter))
    except ValueError as error:
        print(f"an entry was not written by this version of the policy: {error}", file=out)
        return ExitCode.FAILED
    same = outcome.difference is None and outcome.num_compared > 0
    num_refused = counter.num - outcome.num_skipped - outcome.num_compared
    if as_json:
        print(json.dumps(_as_map(outcome, same, num_refused)), file=out)
    else:
        print(outcome_text(outcome, num_refused), file=out)
    return ExitCode.OK if same else ExitCode.FAILED


def entry(decision: Decision) -> Entry:
    """A decision as the policy's replay takes it."""
    return dict(decision.event), tuple(dict(item) for item in decision.instructions)


class _Counted:
    """Passes decisions on and counts them."""

    def __init__(self, decisions: Iterable[Decision]) -> None:
        self._decisions = decisions
        self.num = 0

    def __iter__(self) -> Iterator[Decision]:
        for decision in self._decisions:
            self.num += 1
            yield decision


def _as_map(outcome: Replayed, same: bool, num_refused: int) -> dict[str, object]:
    return {
        "same": same,
        "num_compared": outcome.num_compared,
        "num_skipped": outcome.num_skipped,
        "num_refused": num_refused,
        "difference": None if outcome.difference is None else asdict(outcome.difference),
    }

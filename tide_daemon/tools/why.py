"""`tide-daemon why`: says in plain words why things are as they are.

    tide-daemon why --url nats://127.0.0.1:4222 --model smollm2-135m     the fleet and its last 5 decisions
    tide-daemon why --node gpu-1                                         whether it speculates, and what would change it
    tide-daemon why --version 8                                          why a draft was deployed or refused
    tide-daemon why --last 20 --since 7d
    tide-daemon why --file journal.jsonl                                 from a file of `replay --save`

Reads the journal since --since (a day) and, from the bus, what is desired and reported of nodes now.
Nothing is consumed. The explanations are in policy/why/.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from tide_daemon.bus.port import Bus
from tide_daemon.errors import ConfigError
from tide_daemon.exit_codes import ExitCode
from tide_daemon.policy.events import ServerFound, ServerReported
from tide_daemon.policy.why.decision import why_decision
from tide_daemon.policy.why.fleet import why_fleet
from tide_daemon.policy.why.history import Decided, History
from tide_daemon.policy.why.node import why_node
from tide_daemon.policy.why.trainer import why_trainer
from tide_daemon.policy.why.version import why_version
from tide_daemon.roles.controller_journal import read_record
from tide_daemon.roles.controller_records import event_of_desired, event_of_record
from tide_daemon.tools import journal_reading
from tide_daemon.tools.configured_bus import OpenBus, add_bus_arguments, open_configured_bus
from tide_daemon.wire import subjects
from tide_daemon.wire.records import Decision, DesiredServer, NodeReport

_DEFAULT_LAST = 5


@dataclass(slots=True)
class Known:
    """What was read: the journal, and what the bus holds of the asked-for node now.

    Attributes:
        num_unreadable: entries that this version of the policy did not write.
    """

    history: History = field(default_factory=History)
    num_unreadable: int = 0
    desired: ServerFound | None = None
    report: ServerReported | None = None
    _fence: journal_reading.Fence = field(default_factory=journal_reading.Fence)

    def take(self, decision: Decision) -> None:
        """Take in the next entry of the journal, unless its controller no longer led."""
        if not self._fence.admits(decision):
            return
        d, maps = decision, [dict(item) for item in decision.instructions]
        try:
            self.history.add(Decided.from_maps(d.at, d.sequence, d.fencing_token, d.controller, dict(d.event), maps))
        except ValueError:
            self.num_unreadable += 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to explain, and from where."""
    parser.add_argument("--node", metavar="NAME", help="explain one server node or trainer")
    parser.add_argument("--version", type=int, metavar="V", help="explain one draft version")
    parser.add_argument("--last", type=int, metavar="K", help=f"explain the last K decisions ({_DEFAULT_LAST})")
    parser.add_argument("--since", default="1d", metavar="TIME", help="how far back to read: 30m, 7d, an ISO time (1d)")
    parser.add_argument("--file", type=Path, metavar="FILE", help="a journal of `replay --save` instead of the bus")
    parser.add_argument("--json", action="store_true", help="the same sentences as JSON")
    add_bus_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Explain; returns the exit code: 1 when the journal holds nothing to explain."""
    if arguments.last is not None and arguments.last < 1:
        raise ConfigError("--last wants a positive number")
    if arguments.file is not None:
        known = take_in(journal_reading.read_file(arguments.file))
        return explain(arguments, known, known.history.newest_at, sys.stdout)
    return asyncio.run(run_on_bus(arguments, open_configured_bus, sys.stdout))


async def run_on_bus(arguments: argparse.Namespace, open_bus: OpenBus, out: TextIO) -> int:
    """Read the bus, then explain.

    Raises:
        BusError: the broker cannot be reached or has no journal.
    """
    now = time.time()
    since = journal_reading.parse_since(arguments.since, now)
    async with open_bus(arguments) as opened:
        sequence = await journal_reading.sequence_at(opened.bus, opened.model, since)
        first = await journal_reading.reign_start(opened.bus, opened.model, sequence)
        known = Known()
        async for decision in journal_reading.read_bus(opened.bus, opened.model, first=first):
            known.take(decision)
        if arguments.node is not None:
            await _look_at_node(opened.bus, opened.model, arguments.node, known)
    return explain(arguments, known, now, out)


def take_in(decisions: Iterable[Decision]) -> Known:
    """What a journal says."""
    known = Known()
    for decision in decisions:
        known.take(decision)
    return known


def explain(arguments: argparse.Namespace, known: Known, now: float, out: TextIO) -> int:
    """Print what was asked for; returns the exit code."""
    history = known.history
    sections: dict[str, object] = {}
    if arguments.node is not None:
        if arguments.node in history.trainers:
            sections["trainer"] = why_trainer(history, arguments.node, now)
        if "trainer" not in sections or arguments.node in history.nodes:
            sections["node"] = why_node(history, arguments.node, now, known.desired, known.report)
    if arguments.version is not None:
        sections["version"] = why_version(history, arguments.version, now)
    if not sections and arguments.last is None:
        sections["fleet"] = why_fleet(history, now)
    if arguments.last is not None or "fleet" in sections:
        last = list(history.decisions)[-(arguments.last or _DEFAULT_LAST) :]
        sections["decisions"] = [why_decision(entry) for entry in last]
    if known.num_unreadable:
        sections["unreadable"] = [f"{known.num_unreadable} entries were not written by this version of the policy."]
    if arguments.json:
        print(json.dumps(sections, indent=2), file=out)
    else:
        print("\n".join(_text(sections)), file=out)
    return ExitCode.OK if history.newest_at > 0.0 else ExitCode.FAILED


def _text(sections: dict[str, object]) -> list[str]:
    lines: list[str] = []
    for name, content in sections.items():
        assert isinstance(content, list)
        if name == "decisions":
            lines += [
                "",
                f"The last {len(content)} decisions:" if content else "No decision in this part of the journal.",
            ]
            lines += [line for decision in content for line in decision]
        else:
            lines += ["", *content]
    return lines[1:]


async def _look_at_node(bus: Bus, model: str, node: str, known: Known) -> None:
    try:
        control, report = subjects.control_server(model, node), subjects.report(model, node, "server")
    except ValueError as error:
        raise ConfigError(f"--node: {error}") from None
    message = await bus.last(control)
    record = None if message is None else read_record(message)
    if isinstance(record, DesiredServer):
        event = event_of_desired(record, record.at)
        known.desired = event if isinstance(event, ServerFound) else None
    message = await bus.last(report)
    record = None if message is None else read_record(message)
    if message is not None and isinstance(record, NodeReport):
        seen = event_of_record(record, message.stored_at)
        known.report = seen if isinstance(seen, ServerReported) else None

"""`tide-daemon status`: the fleet as a table, from what the bus holds now.

    tide-daemon status --config tide.toml
    tide-daemon status --url nats://127.0.0.1:4222 --model gpt-oss-120b --json

Nodes, trainers and the leader, what is served and what is wrong. Exit code 1 when something is wrong: a node or
trainer not heard of for 30 s, an engine down, a draft that is asked for and does not run, nobody who leads.
`tide-daemon why` says why things are so; a daemon's own page has more of one node.
"""

import argparse
import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import TextIO

from tide_daemon.bus.port import Bus
from tide_daemon.exit_codes import ExitCode
from tide_daemon.roles.controller_journal import read_end
from tide_daemon.roles.pace import accept_length, steps_at, tokens_per_s
from tide_daemon.tools.configured_bus import OpenBus, add_bus_arguments, open_configured_bus
from tide_daemon.tools.newest import newest_of
from tide_daemon.tools.table import table
from tide_daemon.wire import subjects
from tide_daemon.wire.records import DesiredServer, NodeReport, TrainerReport

LOST_AFTER_S = 30.0
"""Reports come every second or two."""
_LEADER_SILENT_S = 120.0
"""A leader journals a copy of the fleet's state at least every minute (controller.keep_state_s)."""


@dataclass(frozen=True, slots=True)
class ServerRow:
    """A server node: what it last said, and what it is asked for. Ages in seconds."""

    node: str
    engine: str
    version: int
    desired_version: int
    num_running: int
    num_steps: int
    accept_length: float | None
    tokens_per_s: float
    collecting: bool
    rows_dropped: int
    heard_s: float


@dataclass(frozen=True, slots=True)
class TrainerRow:
    """A trainer: what it last said."""

    trainer: str
    state: str
    round: int
    step: int
    num_steps_total: int
    loss: float
    num_requests: int
    new_tokens: int
    heard_s: float


@dataclass(slots=True)
class FleetStatus:
    """All that is shown. `problems` are sentences, most urgent first."""

    model: str
    leader: str = ""
    fencing_token: int = 0
    serving_version: int = 0
    stage: str = "unknown"
    candidate_version: int = 0
    canary: str = ""
    pinned: bool = False
    servers: list[ServerRow] = field(default_factory=list)
    trainers: list[TrainerRow] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to look."""
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of text")
    add_bus_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Show the fleet; returns the exit code."""
    return asyncio.run(run_on_bus(arguments, open_configured_bus, sys.stdout))


async def run_on_bus(arguments: argparse.Namespace, open_bus: OpenBus, out: TextIO) -> int:
    """Read the bus, then show.

    Raises:
        BusError: the broker cannot be reached.
    """
    async with open_bus(arguments) as opened:
        status = await read(opened.bus, opened.model, time.time())
    print(json.dumps(asdict(status)) if arguments.json else "\n".join(lines(status)), file=out)
    return ExitCode.FAILED if status.problems else ExitCode.OK


async def read(bus: Bus, model: str, now: float) -> FleetStatus:
    """The fleet at `now`, unix seconds."""
    status = FleetStatus(model)
    end = await read_end(bus, model)
    if end.fleet is not None:
        fleet = end.fleet
        status.serving_version, status.stage, status.pinned = fleet.serving_version, fleet.stage, fleet.pinned
        status.candidate_version, status.canary = fleet.candidate_version, fleet.canary
    if end.last is not None:
        status.leader, status.fencing_token = end.last.controller, end.last.fencing_token
    if end.last is None or now - end.last.at > _LEADER_SILENT_S:
        status.problems.append("no controller leads: nothing is decided. Is tide-daemon@controller running?")
    desired = {
        record.node: record
        for _, record in (await newest_of(bus, subjects.all_control(model))).values()
        if isinstance(record, DesiredServer)
    }
    for message, record in (await newest_of(bus, subjects.all_reports(model))).values():
        heard_s = round(max(0.0, now - message.stored_at), 1)
        if isinstance(record, NodeReport):
            _server(status, record, desired.get(record.node), heard_s)
        elif isinstance(record, TrainerReport):
            _trainer(status, record, heard_s)
    status.servers.sort(key=lambda row: row.node)
    status.trainers.sort(key=lambda row: row.trainer)
    return status


def _server(status: FleetStatus, report: NodeReport, desired: DesiredServer | None, heard_s: float) -> None:
    wanted = 0 if desired is None else desired.draft_version
    row = ServerRow(
        report.node,
        report.engine,
        report.running_version,
        wanted,
        report.num_running,
        0 if desired is None else steps_at(desired.steps_table, report.num_running),
        accept_length(report),
        round(tokens_per_s(report), 1),
        report.collecting,
        report.rows_dropped,
        heard_s,
    )
    status.servers.append(row)
    if heard_s > LOST_AFTER_S:
        status.problems.append(f"{row.node} was not heard of for {heard_s:.0f} s: is its daemon or the broker away?")
    elif report.engine == "down":
        status.problems.append(f"{row.node}: the engine is down. {' '.join(report.problems[-1:])}".rstrip())
    elif report.engine == "ready" and desired is not None and wanted and row.version != wanted:
        why = report.problems[-1] if report.problems else f"tide-daemon why --node {row.node}"
        status.problems.append(f"{row.node} runs version {row.version} and is asked for version {wanted}: {why}")


def _trainer(status: FleetStatus, report: TrainerReport, heard_s: float) -> None:
    row = TrainerRow(
        report.trainer,
        report.state,
        report.round,
        report.step,
        report.num_steps_total,
        report.loss,
        report.num_requests,
        report.new_tokens,
        heard_s,
    )
    status.trainers.append(row)
    if heard_s > LOST_AFTER_S:
        status.problems.append(f"trainer {row.trainer} was not heard of for {heard_s:.0f} s")
    elif report.state == "failed":
        status.problems.append(f"trainer {row.trainer} failed: {' '.join(report.problems[-1:]) or 'its log has why'}")


def lines(status: FleetStatus) -> list[str]:
    """The tables as text."""
    served = f"version {status.serving_version}" if status.serving_version else "no draft"
    text = f"{status.model}: {served} is served, {status.stage}"
    if status.candidate_version:
        text += f" (version {status.candidate_version} on {status.canary})"
    text += ", pinned" if status.pinned else ""
    text += f"; led by {status.leader}, token {status.fencing_token}" if status.leader else "; nobody ever led"
    shown = [text]
    if status.servers:
        shown += ["", *_server_table(status.servers)]
    if status.trainers:
        shown += ["", *_trainer_table(status.trainers)]
    return [*shown, *(["", *(f"! {problem}" for problem in status.problems)] if status.problems else [])]


def _server_table(servers: list[ServerRow]) -> list[str]:
    heads = ("SERVER", "ENGINE", "RUNS", "ASKED", "REQUESTS", "STEPS", "ACCEPT", "TOKENS/S", "CAPTURE", "HEARD")
    rows = [
        (
            row.node,
            row.engine,
            row.version,
            row.desired_version,
            row.num_running,
            row.num_steps,
            "-" if row.accept_length is None else f"{row.accept_length:.2f}",
            row.tokens_per_s,
            "on" if row.collecting else "off",
            f"{row.heard_s:.0f} s ago",
        )
        for row in servers
    ]
    return table(heads, rows)


def _trainer_table(trainers: list[TrainerRow]) -> list[str]:
    heads = ("TRAINER", "STATE", "ROUND", "STEP", "LOSS", "REQUESTS", "NEW TOKENS", "HEARD")
    rows = [
        (
            row.trainer,
            row.state,
            row.round,
            f"{row.step}/{row.num_steps_total}",
            row.loss,
            row.num_requests,
            row.new_tokens,
            f"{row.heard_s:.0f} s ago",
        )
        for row in trainers
    ]
    return table(heads, rows)

"""`tide-daemon status`: the fleet as a table, from what the bus holds now.

    tide-daemon status --config tide.toml
    tide-daemon status --url nats://127.0.0.1:4222 --model gpt-oss-120b --json

Nodes, trainers and the leader, what is served and what is wrong. Exit code 1 when something is wrong: a node or
trainer not heard of for 30 s, an engine down, a draft that is asked for and does not run, nobody who leads; with what
to do about it. OF PLAIN is how many times as fast as plain decoding the node decodes, by the controller's cost model
over the last ten seconds (policy/plain_pace.py); "-" for an idle node.
`tide-daemon why` says why things are so; a controller's page shows the same, live.
"""

import argparse
import asyncio
import json
import sys
from dataclasses import asdict
from typing import TextIO

from tide_daemon.bus.port import Bus
from tide_daemon.exit_codes import ExitCode
from tide_daemon.roles.fleet_status import FleetStatus, ServerRow, TrainerRow
from tide_daemon.roles.fleet_watch import FleetWatch
from tide_daemon.tools.configured_bus import OpenBus, add_bus_arguments, open_configured_bus
from tide_daemon.tools.table import table


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
        status = await read(opened.bus, opened.model)
    print(json.dumps(asdict(status)) if arguments.json else "\n".join(lines(status)), file=out)
    return ExitCode.FAILED if status.problems else ExitCode.OK


async def read(bus: Bus, model: str) -> FleetStatus:
    """The fleet now: the same record as the status page's, see roles/fleet_view.py."""
    watch = FleetWatch(bus, model)
    await watch.read()
    return watch.status()


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
    for problem in status.problems:
        shown += ["", f"! {problem.what}", f"  {problem.do}"]
    return shown


def _server_table(servers: list[ServerRow]) -> list[str]:
    heads = (
        "SERVER",
        "ENGINE",
        "RUNS",
        "ASKED",
        "REQUESTS",
        "STEPS",
        "ACCEPT",
        "TOKENS/S",
        "OF PLAIN",
        "CAPTURE",
        "HEARD",
    )
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
            "-" if row.of_plain is None else f"{row.of_plain:.2f}",
            "on" if row.collecting else "off",
            f"{row.heard_s:.0f} s ago",
        )
        for row in servers
    ]
    return table(heads, rows)


def _trainer_table(trainers: list[TrainerRow]) -> list[str]:
    heads = ("TRAINER", "STATE", "ROUND", "STEP", "LOSS", "LEFT", "REQUESTS", "NEW TOKENS", "HEARD")
    rows = [
        (
            row.trainer,
            row.state,
            row.round,
            f"{row.step}/{row.num_steps_total}",
            row.loss,
            "-" if row.left_s is None else f"{row.left_s:.0f} s",
            row.num_requests,
            row.new_tokens,
            f"{row.heard_s:.0f} s ago",
        )
        for row in trainers
    ]
    return table(heads, rows)

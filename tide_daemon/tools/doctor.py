"""`tide-daemon doctor`: looks at a node before it joins, and says what to change.

    tide-daemon doctor --role server --config /etc/tide-daemon/config.toml
    tide-daemon doctor --role trainer --config tide.toml --quick --json

Packages, SGLang's arguments and hooks, the target's layers and vocabulary, cached drafts, disk, shared memory,
permissions, ports, and the broker: reachable with this node's key, set up, message size, clock. Nothing is changed, and
no daemon needs to run; ports of one that does are told as taken. --quick leaves out what imports torch or SGLang.
Exit code 1 if anything failed; warnings do not count.
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from tide_daemon import config as configuration
from tide_daemon.config.sections import Config
from tide_daemon.errors import TideError
from tide_daemon.exit_codes import ExitCode
from tide_daemon.tools.checks.finding import FAILED, OK, Finding

_MARKS = {"ok": "ok", "warning": "WARN", "failed": "FAIL", "skipped": "-"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whose node it is: the same words as for a daemon."""
    parser.add_argument(
        "--role", metavar="ROLES", required=True, help="as for the daemon: server, trainer, controller, all"
    )
    parser.add_argument("--config", metavar="FILE", type=Path, help="TOML file; also by $TIDE_CONFIG")
    parser.add_argument(
        "--set", metavar="SECTION.FIELD=VALUE", action="append", default=[], help="override one setting"
    )
    parser.add_argument("--quick", action="store_true", help="import neither torch nor SGLang")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of text")


def run(arguments: argparse.Namespace) -> int:
    """Look, and print; returns the exit code."""
    path = configuration.chosen_file(arguments.config, os.environ)
    roles = configuration.parse_roles(arguments.role)
    resolved = configuration.load(roles, path, os.environ, arguments.set)
    ignored = [Finding("configuration", "warning", text, "remove it") for text in resolved.warnings]
    found = [*ignored, *asyncio.run(examine(resolved.config, roles, quick=arguments.quick))]
    return show(found, sys.stdout, as_json=arguments.json)


async def examine(config: Config, roles: Sequence[str], *, quick: bool) -> list[Finding]:
    """Every finding about this node."""
    from tide_daemon.tools.checks.broker import check_broker
    from tide_daemon.tools.checks.machine import check_machine
    from tide_daemon.tools.checks.model import check_model

    found = check_machine(config, roles)
    try:
        found += await asyncio.to_thread(check_model, config, roles, quick=quick)
    except (ImportError, TideError) as error:
        found.append(Finding("target", FAILED, str(error), "see the packages above"))
    return [*found, *await check_broker(config, roles)]


def show(found: Sequence[Finding], out: TextIO, *, as_json: bool) -> int:
    """Print the findings; returns the exit code."""
    num_failed = sum(finding.state == FAILED for finding in found)
    if as_json:
        print(json.dumps([asdict(finding) for finding in found]), file=out)
    else:
        width = max(len(finding.check) for finding in found)
        for finding in found:
            print(f"{_MARKS[finding.state]:<5} {finding.check:<{width}}  {finding.found}", file=out)
            if finding.advice:
                print(f"      {'':<{width}}  -> {finding.advice}", file=out)
        wrong = sum(finding.state not in (OK, "skipped") for finding in found) - num_failed
        print(f"{len(found)} checks: {num_failed} failed, {wrong} warnings", file=out)
    return ExitCode.FAILED if num_failed else ExitCode.OK

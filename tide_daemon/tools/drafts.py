"""`tide-daemon drafts`: the drafts on the bus, and what an operator may have done with them.

    tide-daemon drafts                              all versions, newest last, with what became of each
    tide-daemon drafts pin                          keep what is served; nothing is promoted until unpin
    tide-daemon drafts pin 7 --reason "8 is slow"   bring every node to version 7 and keep it
    tide-daemon drafts unpin
    tide-daemon drafts roll-back                    to the version served before; ends a canary if there is one
    tide-daemon drafts forget 9                     never serve it, and delete it from the bus
    tide-daemon drafts export 7 /models/draft       as a checkpoint that SGLang loads without us

The controller decides: it answers, writes desired state, and journals who asked and why. Exit code 1 when it refuses.
Give the broker with --url and --model, or --config, before or after the verb.
"""

import argparse
import asyncio
import json
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from tide_daemon.bus.port import Bus
from tide_daemon.errors import ConfigError
from tide_daemon.exit_codes import ExitCode
from tide_daemon.policy.events import FleetState
from tide_daemon.roles.controller_journal import read_end, read_record
from tide_daemon.roles.newest import newest_of
from tide_daemon.tools.configured_bus import OpenBus, add_bus_arguments, open_configured_bus
from tide_daemon.tools.export import add_format_arguments
from tide_daemon.tools.operator_request import ask
from tide_daemon.tools.table import table
from tide_daemon.wire import subjects
from tide_daemon.wire.records import DraftManifest


@dataclass(frozen=True, slots=True)
class DraftRow:
    """One version. `gain` is in tokens a step on held-out requests, None where nothing was scored."""

    version: int
    state: str
    created_at: float
    trainer: str
    parent_version: int
    base_version: int | None
    num_bytes: int
    num_train_tokens: int
    gain: float | None
    digest: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A verb, list by default."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    parser.set_defaults(verb="list", version=None, reason="")
    _common(parser)
    _common(verbs.add_parser("list", help="all versions on the bus and what became of each"))
    pin = verbs.add_parser("pin", help="keep the served version, or bring all nodes to VERSION and keep that")
    pin.add_argument("version", nargs="?", type=int, metavar="VERSION")
    unpin = verbs.add_parser("unpin", help="let candidates be promoted again")
    roll_back = verbs.add_parser("roll-back", help="serve the version that was served before; end a canary")
    forget = verbs.add_parser("forget", help="never serve VERSION, and delete it from the bus")
    forget.add_argument("version", type=int, metavar="VERSION")
    for verb in (pin, unpin, roll_back, forget):
        verb.add_argument("--reason", default="", help="a sentence for the journal")
        _common(verb)
    export = verbs.add_parser("export", help="write VERSION as a checkpoint to FOLDER")
    export.add_argument("version", type=int, metavar="VERSION")
    export.add_argument("folder", type=Path, metavar="FOLDER", help="must not exist, or be empty")
    add_format_arguments(export)
    _common(export)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="one line of JSON")
    add_bus_arguments(parser, suppress=True)


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked; returns the exit code."""
    return asyncio.run(run_on_bus(arguments, open_configured_bus, sys.stdout))


async def run_on_bus(arguments: argparse.Namespace, open_bus: OpenBus, out: TextIO) -> int:
    """Do it over a bus that is opened and closed here.

    Raises:
        ConfigError: there is no such version.
        BusError: the broker cannot be reached, or no controller answers.
    """
    as_json = getattr(arguments, "json", False)
    if arguments.verb == "export":
        from tide_daemon.tools import export

        arguments.json = as_json
        return await export.run_on_bus(arguments, open_bus)
    async with open_bus(arguments) as opened:
        if arguments.verb == "list":
            rows = await read_drafts(opened.bus, opened.model)
            print(json.dumps([asdict(row) for row in rows]) if as_json else "\n".join(lines(rows)), file=out)
            return ExitCode.OK
        return await _ask(arguments, opened.bus, opened.model, out, as_json=as_json)


async def _ask(arguments: argparse.Namespace, bus: Bus, model: str, out: TextIO, *, as_json: bool) -> int:
    draft = None
    if arguments.version is not None:
        draft = await _manifest(bus, model, arguments.version)
        if draft is None:
            raise ConfigError(f"version {arguments.version} of {model} is not on the bus; see `tide-daemon drafts`")
    if arguments.verb == "forget":
        await _check_nobody_needs(bus, model, arguments.version)
    answer = await ask(bus, model, arguments.verb.replace("-", "_"), draft, arguments.reason)
    num_deleted = 0
    if answer.granted and arguments.verb == "forget":
        # The claim stays: a number names one content for ever. The manifest goes first, so that nobody begins to fetch.
        assert draft is not None
        num_deleted += await bus.purge(subjects.draft_manifest(model, draft.version))
        for part in draft.parts:
            num_deleted += await bus.purge(subjects.draft_part(model, draft.version, part.index))
    if as_json:
        print(json.dumps({**asdict(answer), "num_deleted": num_deleted}), file=out)
    else:
        print(f"{answer.controller}: {answer.reason}", file=out)
        if num_deleted:
            print(f"{num_deleted} messages deleted", file=out)
    return ExitCode.OK if answer.granted else ExitCode.FAILED


async def read_drafts(bus: Bus, model: str) -> list[DraftRow]:
    """Every version whose manifest is on the bus, ascending."""
    fleet = (await read_end(bus, model)).fleet or FleetState()
    found = await newest_of(bus, subjects.all_manifests(model))
    manifests = [record for _, record in found.values() if isinstance(record, DraftManifest)]
    return [_row(manifest, fleet) for manifest in sorted(manifests, key=lambda item: item.version)]


def lines(rows: list[DraftRow]) -> list[str]:
    """The table as text."""
    if not rows:
        return ["no draft is on the bus"]
    heads = ("VERSION", "STATE", "CREATED", "TRAINER", "PARENT", "BASE", "MB", "TRAINED TOKENS", "GAIN", "DIGEST")
    shown = [
        (
            row.version,
            row.state,
            datetime.fromtimestamp(row.created_at, UTC).strftime("%Y-%m-%d %H:%M UTC"),
            row.trainer,
            row.parent_version,
            "anchor" if row.base_version is None else str(row.base_version),
            round(row.num_bytes / 1e6, 2),
            row.num_train_tokens,
            "-" if row.gain is None else f"{row.gain:+.3f}",
            row.digest[:16],
        )
        for row in rows
    ]
    return table(heads, shown)


def _row(manifest: DraftManifest, fleet: FleetState) -> DraftRow:
    positions = sum(score.num_positions for score in manifest.scores)
    gain = sum(score.candidate_tokens - score.serving_tokens for score in manifest.scores)
    return DraftRow(
        manifest.version,
        _state(manifest.version, fleet),
        manifest.created_at,
        manifest.trainer,
        manifest.parent_version,
        manifest.base_version,
        sum(part.num_bytes for part in manifest.parts),
        manifest.num_train_tokens,
        round(gain / positions, 4) if positions else None,
        manifest.content_digest,
    )


def _state(version: int, fleet: FleetState) -> str:
    if version == fleet.serving_version:
        return "pinned" if fleet.pinned else "served"
    if version == fleet.candidate_version:
        return f"on canary {fleet.canary}"
    if version in fleet.refused:
        return "rolled back or forgotten"
    if version == fleet.previous_version:
        return "served before"
    return "judged" if version in fleet.judged else "waits for the gate"


async def _manifest(bus: Bus, model: str, version: int) -> DraftManifest | None:
    try:
        subject = subjects.draft_manifest(model, version)
    except ValueError as error:
        raise ConfigError(f"VERSION: {error}") from None
    message = await bus.last(subject)
    record = None if message is None else read_record(message)
    return record if isinstance(record, DraftManifest) else None


async def _check_nobody_needs(bus: Bus, model: str, version: int) -> None:
    """ConfigError when another version on the bus is a delta of this one; the controller does not know the bases."""
    heirs = [row.version for row in await read_drafts(bus, model) if row.base_version == version]
    if heirs:
        raise ConfigError(f"version {version} is what version {heirs[0]} is a delta of; forget that one first")

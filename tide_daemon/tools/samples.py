"""`tide-daemon samples`: has the samples of one request forgotten, everywhere and for good.

    tide-daemon samples forget 4f0c...e1 --reason "the customer asked for it"
    tide-daemon samples list                   what is to be forgotten, and which trainer has erased what

REQUEST_ID is the sample's id, 32 hex digits: what the client sent as custom_params.tide_request, or what `peek` shows
as request_id. The demand stands for 400 days, longer than any store keeps samples: trainers that are away obey when
they come back, and servers send no more of it. Each trainer deletes it from its store, erases it from the stream and
says what it erased. Asking again is harmless and has everybody look again. What a draft has learnt stays learnt.
Exit code 1 while a trainer that was heard of in the last day has not answered.
Give the broker with --url and --model, or --config, before or after the verb.
"""

import argparse
import asyncio
import json
import re
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TextIO

from tide_daemon.bus.port import Bus
from tide_daemon.errors import ConfigError
from tide_daemon.exit_codes import ExitCode
from tide_daemon.roles.leaving import audit_id
from tide_daemon.roles.newest import newest_of
from tide_daemon.tools.configured_bus import OpenBus, add_bus_arguments, open_configured_bus
from tide_daemon.tools.operator_request import operator_name
from tide_daemon.tools.table import table
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.kinds import REQUEST_ID_PATTERN
from tide_daemon.wire.records import ForgetSamples, SamplesForgotten, TrainerReport

WAIT_S = 20.0
_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Erasure:
    """What one trainer has done about one request. None: it has not answered the newest demand.

    Attributes:
        at: when it looked last, unix seconds.
        num_stored, num_streamed: see SamplesForgotten.
        heard_s: seconds since its last report, None if it has sent none lately.
    """

    trainer: str
    at: float | None
    num_stored: int | None
    num_streamed: int | None
    heard_s: float | None


@dataclass(frozen=True, slots=True)
class Demand:
    """One request that is to be forgotten.

    Attributes:
        audit: how the audit lines of servers call it.
    """

    request_id: str
    audit: str
    asked_at: float
    operator: str
    reason: str
    trainers: tuple[Erasure, ...]

    @property
    def is_done(self) -> bool:
        """Whether every trainer that is known of has answered, and there is one."""
        return bool(self.trainers) and all(erasure.at is not None for erasure in self.trainers)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A verb."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    _common(parser)
    forget = verbs.add_parser("forget", help="delete the samples of REQUEST_ID from every store and from the stream")
    forget.add_argument("request_id", metavar="REQUEST_ID", help="32 hex digits")
    forget.add_argument("--reason", default="", help="a sentence for the record")
    forget.add_argument(
        "--wait", type=float, default=WAIT_S, metavar="S", help=f"seconds to wait for trainers' answers ({WAIT_S:g})"
    )
    _common(forget)
    _common(verbs.add_parser("list", help="what is to be forgotten, and which trainer has erased what"))


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="one line of JSON")
    add_bus_arguments(parser, suppress=True)


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked; returns the exit code."""
    return asyncio.run(run_on_bus(arguments, open_configured_bus, sys.stdout))


async def run_on_bus(arguments: argparse.Namespace, open_bus: OpenBus, out: TextIO) -> int:
    """Do it over a bus that is opened and closed here.

    Raises:
        ConfigError: the id is not one.
        BusError: the broker cannot be reached, or does not take it.
    """
    as_json = getattr(arguments, "json", False)
    if arguments.verb == "forget" and re.fullmatch(REQUEST_ID_PATTERN, arguments.request_id) is None:
        raise ConfigError(f"REQUEST_ID: must be 32 hex digits in lower case, not {arguments.request_id!r}")
    async with open_bus(arguments) as opened:
        if arguments.verb == "forget":
            demand = await forget(opened.bus, opened.model, arguments.request_id, arguments.reason, arguments.wait)
            print(json.dumps(asdict(demand)) if as_json else "\n".join(lines(demand)), file=out)
            return ExitCode.OK if demand.is_done else ExitCode.FAILED
        demands = await read_demands(opened.bus, opened.model)
    if as_json:
        print(json.dumps([asdict(demand) for demand in demands]), file=out)
    else:
        shown = [line for demand in demands for line in (*lines(demand), "")]
        print("\n".join(shown[:-1] or ["nothing is to be forgotten"]), file=out)
    return ExitCode.OK if all(demand.is_done for demand in demands) else ExitCode.FAILED


async def forget(bus: Bus, model: str, request_id: str, reason: str, wait_s: float) -> Demand:
    """Ask for it, and wait until the trainers that are there have answered, at most `wait_s`.

    Raises:
        BusFullError: 16 MiB of demands stand already.
        BusError: the broker cannot be reached, or does not take it.
    """
    record = ForgetSamples(request_id, time.time(), operator_name(), reason)
    await bus.publish(
        subjects.subject_of(model, record), envelope.encode(record), message_id=subjects.message_id(model, record)
    )
    give_up_at = time.monotonic() + wait_s
    while True:
        (demand,) = [found for found in await read_demands(bus, model) if found.request_id == request_id]
        if demand.is_done or time.monotonic() >= give_up_at:
            return demand
        await asyncio.sleep(_POLL_S)


async def read_demands(bus: Bus, model: str) -> list[Demand]:
    """Every request that is to be forgotten, the newest last. Raises BusError."""
    asked = await newest_of(bus, subjects.all_forgets(model))
    told = (await newest_of(bus, subjects.all_forgotten(model))).values()
    reports = (await newest_of(bus, subjects.all_reports(model, "trainer"))).values()
    now = time.time()
    heard = {
        record.trainer: now - message.stored_at for message, record in reports if isinstance(record, TrainerReport)
    }
    demands = []
    for message, record in sorted(asked.values(), key=lambda item: item[0].sequence):
        if not isinstance(record, ForgetSamples):
            continue
        # One stream holds both, so that an answer behind the demand is an answer to it.
        answers = {
            answer.trainer: answer
            for answered, answer in told
            if isinstance(answer, SamplesForgotten)
            and answer.request_id == record.request_id
            and answered.sequence > message.sequence
        }
        trainers = tuple(_erasure(name, answers.get(name), heard.get(name)) for name in sorted({*heard, *answers}))
        demands.append(
            Demand(record.request_id, audit_id(record.request_id), record.at, record.operator, record.reason, trainers)
        )
    return demands


def _erasure(trainer: str, answer: SamplesForgotten | None, heard_s: float | None) -> Erasure:
    if answer is None:
        return Erasure(trainer, None, None, None, heard_s)
    return Erasure(trainer, answer.at, answer.num_stored, answer.num_streamed, heard_s)


def lines(demand: Demand) -> list[str]:
    """What has become of a demand, as text."""
    asked_at = datetime.fromtimestamp(demand.asked_at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    why = f" ({demand.reason})" if demand.reason else ""
    shown = [
        f"{demand.request_id}: asked for by {demand.operator} at {asked_at}{why}; audit lines call it {demand.audit}"
    ]
    if not demand.trainers:
        shown.append(
            "no trainer was heard of in the last day: the first one that comes erases it. Until then it stays in the "
            "stream, at most for bus.hidden_max_age_s"
        )
        return shown
    rows = [
        (
            erasure.trainer,
            "-" if erasure.num_stored is None else erasure.num_stored,
            "-" if erasure.num_streamed is None else erasure.num_streamed,
            _state(erasure),
        )
        for erasure in demand.trainers
    ]
    shown += table(("TRAINER", "FROM STORE", "FROM STREAM", "STATE"), rows)
    if demand.is_done and not any(erasure.num_stored or erasure.num_streamed for erasure in demand.trainers):
        shown.append("nothing of it was held: the id is wrong, it was never captured, or retention had taken it")
    return shown


def _state(erasure: Erasure) -> str:
    if erasure.at is not None:
        return f"erased at {datetime.fromtimestamp(erasure.at, UTC).strftime('%Y-%m-%d %H:%M:%S UTC')}"
    heard = "never heard of" if erasure.heard_s is None else f"last heard of {erasure.heard_s:.0f} s ago"
    return f"has not answered; obeys when it comes back ({heard})"

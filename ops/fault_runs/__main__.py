"""`ops/faults`: inflicts faults one after another and writes what came of them.

Exit codes: 0 everything that must hold held; 1 something did not; 2 wrong arguments.
"""

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from benches.machine import commit
from demo_run.stack import MODEL
from demo_run.waiting import StartError

from fault_runs import page
from fault_runs.outcome import Outcome, table
from fault_runs.table import FAULTS, Fault, named

if TYPE_CHECKING:
    from fault_runs.clients import Clients
    from fault_runs.observer import Observer
    from fault_runs.stage import Stage


def main() -> int:
    """Parse, run, print, write."""
    parser = argparse.ArgumentParser(
        prog="ops/faults", description="Inflict faults on the whole system and say what was lost."
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the list of outcomes there")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="a fault or a family; may be repeated"
    )
    parser.add_argument("--list", action="store_true", help="print what there is")
    parser.add_argument(
        "--engine",
        choices=("sglang", "modelled"),
        default="sglang",
        help="modelled: no model and no clients, for trying things quickly",
    )
    parser.add_argument("--away", type=float, default=3600.0, metavar="S", help="seconds of trainer-away-for-an-hour")
    parser.add_argument(
        "--soak", action="store_true", help="random short faults for --minutes; needs an hour to mean much"
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="length of the soak")
    parser.add_argument("--seed", type=int, default=1, help="of the soak's choices")
    parser.add_argument("--fuzz", action="store_true", help="every decoder and the control channel for --seconds")
    parser.add_argument("--seconds", type=float, default=300.0, help="length of the fuzzing")
    parser.add_argument("--page", action="store_true", help="write what was seen to ops/faults.md")
    parser.add_argument("--keep", action="store_true", help="keep files and logs and print where they are")
    arguments = parser.parse_args()
    try:
        faults = named(arguments.only) if arguments.only else list(FAULTS)
    except ValueError as error:
        parser.error(str(error))
    if arguments.list:
        print(listing(faults))
        return 0
    if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
        parser.error(f"--json: there is no folder {arguments.json.absolute().parent}")
    if arguments.fuzz:
        return fuzz_all(arguments)
    if arguments.soak:
        return asyncio.run(soak_all(arguments))
    outcomes = asyncio.run(run_all(faults, arguments))
    print(table(outcomes))
    return 0 if all(outcome.passed or outcome.not_run for outcome in outcomes) else 1


def listing(faults: Sequence[Fault]) -> str:
    """Each row in words."""
    return "\n".join(f"{fault.name} ({fault.family})\n    {fault.done}\n    {fault.holds}" for fault in faults)


async def run_all(faults: Sequence[Fault], arguments: argparse.Namespace) -> list[Outcome]:
    """One after another on one system; on a new one after a fault that it did not recover from."""
    name, outcomes, left = commit(), list[Outcome](), list(faults)
    while left:
        folder = Path(tempfile.mkdtemp(prefix="tide-faults-"))
        try:
            await _on_one_stage(folder, left, outcomes, name, arguments)
        finally:
            if arguments.keep:
                told(f"files are kept in {folder}")
            else:
                shutil.rmtree(folder, ignore_errors=True)
    return outcomes


async def _on_one_stage(
    folder: Path, left: list[Fault], outcomes: list[Outcome], name: str, arguments: argparse.Namespace
) -> None:
    # Only now: --list and --help need neither torch nor a broker.
    from fault_runs.run import inflict

    async with AsyncExitStack() as stack:
        try:
            stage, clients, observer = await started(stack, folder, arguments.engine, brokers := left[0].brokers)
        except StartError as error:
            told(f"the system does not start: {error}")
            while left and left[0].brokers == brokers:
                outcomes.append(not_run(left.pop(0), arguments.engine, name, "the system did not start"))
            return
        while left and left[0].brokers == brokers:
            fault = left.pop(0)
            if (why := cannot_run(fault, stage.engine, bool(stage.mounts))) is not None:
                outcomes.append(not_run(fault, stage.engine, name, why))
                continue
            told(f"[{len(outcomes) + 1}/{len(outcomes) + 1 + len(left)}] {fault.name}: {fault.done}")
            began = time.monotonic()
            outcome = await inflict(fault, stage, clients, observer, name, arguments.away)
            outcomes.append(outcome)
            told(f"    {table([outcome]).splitlines()[1]}  ({time.monotonic() - began:.0f} s in all)")
            for words in [*outcome.broken, *(f"not reported: {each}" for each in outcome.unreported)]:
                told(f"    {words}")
            write(arguments.json, outcomes)
            if arguments.page:
                page.keep([outcome])
            if not outcome.recovered:
                told("    the system has not recovered; the next fault gets a new one")
                return


async def started(
    stack: AsyncExitStack, folder: Path, engine: str, brokers: str = ""
) -> "tuple[Stage, Clients | None, Observer]":
    """The system, its clients and the observer; all end with the stack.

    Args:
        brokers: of deployed.KINDS, "" for a single nats-server.

    Raises:
        StartError: something did not get ready.
    """
    from fault_runs.clients import Clients
    from fault_runs.deployed import DeployedStage
    from fault_runs.observer import Observer
    from fault_runs.stage import Stage

    stage = await asyncio.to_thread(DeployedStage, folder, engine, brokers) if brokers else Stage(folder, engine)
    stack.push_async_callback(stage.stop)
    told(f"starting the system in {folder}; SGLang takes a minute" if engine == "sglang" else "starting")
    await stage.start()
    observer = await stack.enter_async_context(Observer(stage, MODEL))
    clients = None
    if engine == "sglang":
        clients = await stack.enter_async_context(Clients(stage.openai_url))
        await stage.until("requests are answered", clients.have_begun, 300.0)
    await stage.serve_draft()
    return stage, clients, observer


async def soak_all(arguments: argparse.Namespace) -> int:
    """The soak; prints and writes what came of it."""
    from fault_runs.run import inflict
    from fault_runs.soak import soak

    name = commit()
    folder = Path(tempfile.mkdtemp(prefix="tide-soak-"))
    try:
        async with AsyncExitStack() as stack:
            stage, clients, observer = await started(stack, folder, arguments.engine)
            outcomes, figures = await soak(
                stage,
                arguments.minutes,
                arguments.seed,
                lambda fault: cannot_run(fault, stage.engine, bool(stage.mounts)) is None,
                lambda fault: inflict(fault, stage, clients, observer, name, arguments.away),
                lambda: clients.requests if clients is not None else [],
                told,
            )
    finally:
        if not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)
    print(table(outcomes))
    for words in figures["grown"]:
        print(words)
    print(f"{figures['other_answers']} of {figures['answers']} answers differ from the first one to the same prompt")
    if arguments.json is not None:
        document = {"commit": name, "outcomes": [each.to_map() for each in outcomes], **figures}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")
    well = all(outcome.passed for outcome in outcomes) and not figures["grown"] and not figures["other_answers"]
    return 0 if well else 1


def fuzz_all(arguments: argparse.Namespace) -> int:
    """The fuzzing; prints what was found."""
    from fault_runs.fuzz import fuzz

    finds = fuzz(arguments.seconds, told)
    for find in finds:
        print(f"{find.target}: {find.data.hex()}\n{find.text}")
    print(f"{len(finds)} finds in {arguments.seconds:g} s")
    return 1 if finds else 0


def cannot_run(fault: Fault, engine: str, mounts: bool) -> str | None:
    """Why a row cannot be run here, None if it can."""
    if "sglang" in fault.needs and engine != "sglang":
        return "needs SGLang"
    if "mount" in fault.needs and not mounts:
        return "needs the right to mount"
    if "openssl" in fault.needs and shutil.which("openssl") is None:
        return "needs openssl"
    return None


def not_run(fault: Fault, engine: str, name: str, why: str) -> Outcome:
    """An outcome that says so."""
    return Outcome(fault.name, engine, name, "", not_run=why)


def write(path: Path | None, outcomes: Sequence[Outcome]) -> None:
    """The JSON file so far, complete or not at all."""
    if path is None:
        return
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps([outcome.to_map() for outcome in outcomes], indent=2) + "\n")
    part.replace(path)


def told(text: str) -> None:
    """A line for whoever waits."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

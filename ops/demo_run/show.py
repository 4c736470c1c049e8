"""The director: sets up, has the phases played, writes the figures, stops everything again."""

import argparse
import asyncio
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path

import orjson
from demo_data import model as model_data
from demo_data import packages
from rich.console import Console

from demo_run.phase_run import Load
from demo_run.phases import PHASES
from demo_run.picture import draw
from demo_run.play import Played, play
from demo_run.stack import MODEL, Stack
from demo_run.stage import Stage, set_up
from demo_run.table import print_table
from demo_run.waiting import StartError
from demo_run.workloads import load_prompts

console = Console(highlight=False)


async def run(options: argparse.Namespace) -> int:
    """The whole demonstration; exit code 0, or 1 if something did not start."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    state: Path = options.state
    await asyncio.to_thread(prepare_state, state, options.fresh)
    try:
        await _run(options, state)
        return 0
    except StartError as error:
        console.print(f"[red]{error}[/red]")
        return 1
    except asyncio.CancelledError:
        console.print("stopped")
        return 130


async def _run(options: argparse.Namespace, state: Path) -> None:
    cache = packages.cache_dir()
    model_dir = await asyncio.to_thread(model_data.fetch, cache, console.print)
    prompts = await asyncio.to_thread(load_prompts, cache)
    load = Load.of(options.concurrency)
    async with set_up(state, model_dir, console.print, console.status) as stage:
        try:
            async with _kills(options, stage) as killed:
                played = await play(stage, prompts, options.minutes * 60, load, Console(), state / "frozen")
            tell(options, load, played, killed)
            if options.keep:
                await _keep(stage.system)
        except asyncio.CancelledError:
            console.print("stopping everything ...")
            raise


@asynccontextmanager
async def _kills(options: argparse.Namespace, stage: Stage) -> AsyncIterator[dict[str, object]]:
    """With --kill, processes are killed during the block; what came of it is in the map after it."""
    came_of_it: dict[str, object] = {}
    if not options.kill:
        yield came_of_it
        return
    from demo_run.kills import Killer

    killer = Killer(stage, options.minutes * 60, console.print)
    running = asyncio.create_task(killer.run())
    try:
        yield came_of_it
        await killer.look_through_journal()
        came_of_it |= killer.killed.to_map()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def tell(options: argparse.Namespace, load: Load, played: Played, killed: Mapping[str, object]) -> None:
    """The closing table, the picture and the figures; `killed` is what --kill did."""
    names = [phase.name for phase in PHASES]
    print_table(console, played.results, names)
    picture = options.picture or options.state / "demo.png"
    draw(picture, played.timeline, played.results, played.starts, time.time())
    console.print(f"picture: {picture}")
    for name, value in killed.items():
        console.print(f"{name}: {value}")
    if options.json:
        timeline = played.timeline
        figures = played.results.to_map(names) | {
            "minutes": options.minutes,
            "load": asdict(load),
            "versions_swapped": timeline.num_versions,
            "candidates": timeline.num_candidates,
            "requests_failed": played.num_failed,
            "decisions": [{"at": d.at, "reason": d.reason, "numbers": d.numbers} for d in timeline.decisions],
            **killed,
        }
        options.json.write_bytes(orjson.dumps(figures, option=orjson.OPT_INDENT_2))
        console.print(f"figures: {options.json}")


def prepare_state(state: Path, fresh: bool) -> None:
    """Make the folder for the run; `fresh` empties it first, logs included."""
    if fresh:
        shutil.rmtree(state, ignore_errors=True)
    state.mkdir(parents=True, exist_ok=True)


async def _keep(system: Stack) -> None:
    console.print(f"\nstill running, Ctrl-C stops it:\n  OpenAI endpoint  {system.openai_url}/v1  (model {MODEL})")
    for role, url in system.status_urls.items():
        console.print(f"  {role:<15}  {url}/")
    console.print(f"  broker           {system.nats_url}")
    sys.stdout.flush()
    await asyncio.Event().wait()

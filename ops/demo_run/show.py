"""The director: sets up, runs the phases, writes the figures, stops everything again."""

import argparse
import asyncio
import contextlib
import shutil
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

import aiohttp
import orjson
import structlog
from demo_data import model as model_data
from demo_data import packages
from demo_data import prompts as prompt_data
from rich.console import Console

from demo_run.baseline import WARM_UP, Baseline
from demo_run.load import Prompt, stream_chat
from demo_run.phase_run import Load, PhaseRun
from demo_run.phases import PHASES, budgets_s
from demo_run.picture import draw
from demo_run.processes import Children
from demo_run.results import Results
from demo_run.screen import Screen
from demo_run.stack import (
    AUX_LAYERS,
    DRAFT_VOCAB_SIZE,
    MODEL,
    SERVER_ARGUMENTS,
    Stack,
    start_roles,
    wait_until_ready,
)
from demo_run.table import print_table
from demo_run.timeline import Timeline, follow
from demo_run.waiting import READY_TIMEOUT_S, StartError
from tide_daemon.bus.connection import ConnectSettings
from tide_daemon.bus.embedded import EmbeddedServer, EmbeddedSettings
from tide_daemon.bus.jetstream import JetStreamBus
from tide_daemon.bus.port import Bus
from tide_daemon.bus.topology import TopologyLimits, build_topology
from tide_daemon.roles.draft_fetch import DraftFetcher

console = Console(highlight=False)


async def run(options: argparse.Namespace) -> int:
    """The whole demonstration; exit code 0, or 1 if something did not start."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    state: Path = options.state
    await asyncio.to_thread(prepare_state, state, options.fresh)
    children = Children(state / "log")
    log_to_file(state / "log" / "demo.log")
    try:
        return await _run(options, state, children)
    except StartError as error:
        console.print(f"[red]{error}[/red]")
        return 1
    except asyncio.CancelledError:
        console.print("stopping everything ...")
        return 130
    finally:
        await asyncio.to_thread(children.stop)


async def _run(options: argparse.Namespace, state: Path, children: Children) -> int:
    cache = packages.cache_dir()
    model_dir = await asyncio.to_thread(model_data.fetch, cache, console.print)
    workloads = await asyncio.to_thread(load_prompts, cache)
    async with contextlib.AsyncExitStack() as stack:
        topology = build_topology(TopologyLimits())
        nats = EmbeddedServer(EmbeddedSettings(state / "nats", max_store_bytes=topology.max_bytes))
        await nats.start()
        stack.push_async_callback(nats.stop)
        console.print(f"nats-server at {nats.url}; starting the three roles and a plain SGLang to compare with")
        system, roles = await start_roles(children, state, model_dir, nats.url, SERVER_ARGUMENTS)
        baseline = Baseline(MODEL, model_dir, state / "baseline", SERVER_ARGUMENTS, AUX_LAYERS, DRAFT_VOCAB_SIZE)
        stack.push_async_callback(baseline.stop)
        await baseline.start()
        with console.status("SGLang loads its model (this takes a minute on two cores) ..."):
            for role, child in roles.items():
                await wait_until_ready(child, f"{system.status_urls[role]}/readyz", READY_TIMEOUT_S)
            await baseline.wait_until_ready(READY_TIMEOUT_S)
        bus = await JetStreamBus.connect(ConnectSettings((nats.url,), "demo"), topology)
        stack.push_async_callback(bus.close)
        session = await stack.enter_async_context(
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300), connector=aiohttp.TCPConnector(limit=0))
        )
        code = await _phases(options, state, system, baseline, bus, session, workloads)
        if options.keep:
            await _keep(system)
        return code


async def _phases(
    options: argparse.Namespace,
    state: Path,
    system: Stack,
    baseline: Baseline,
    bus: Bus,
    session: aiohttp.ClientSession,
    workloads: dict[str, list[Prompt]],
) -> int:
    timeline, results = Timeline(), Results()
    follower = asyncio.create_task(follow(bus, timeline))
    total_s = options.minutes * 60
    starts: list[tuple[str, float]] = []
    try:
        with Screen(timeline, total_s) as screen:
            load = Load(concurrency=options.concurrency, slice_requests=2 * options.concurrency)
            phase_run = PhaseRun(session, system.openai_url, baseline, timeline, results, screen, load)
            modes = ["plain"]
            # As the comparison server before each of its turns: the first request sets things up that later ones find.
            await stream_chat(session, system.openai_url, WARM_UP, 4)
            for index, (phase, seconds) in enumerate(zip(PHASES, budgets_s(total_s), strict=True)):
                starts.append((phase.name, time.time()))
                await phase_run.run(phase.name, workloads[phase.name], seconds, modes)
                if index == 0:
                    frozen = await freeze(bus, timeline, baseline, state / "frozen")
                    screen.say(frozen)
                    if baseline.has_frozen:
                        modes.append("frozen")
    finally:
        follower.cancel()
    names = [phase.name for phase in PHASES]
    print_table(console, results, names)
    picture = options.picture or state / "demo.png"
    draw(picture, timeline, results, starts, time.time())
    console.print(f"picture: {picture}")
    if options.json:
        figures = results.to_map(names) | {
            "minutes": options.minutes,
            "load": asdict(load),
            "versions_swapped": len({p.draft_version for p in timeline.points if p.draft_version}),
            "candidates": timeline.num_candidates,
            "requests_failed": screen.num_failed,
            "decisions": [{"at": d.at, "reason": d.reason, "numbers": d.numbers} for d in timeline.decisions],
        }
        options.json.write_bytes(orjson.dumps(figures, option=orjson.OPT_INDENT_2))
        console.print(f"figures: {options.json}")
    return 0


async def freeze(bus: Bus, timeline: Timeline, baseline: Baseline, path: Path) -> str:
    """Give the baseline the draft that TIDE runs now; returns a sentence for the screen."""
    node = timeline.node
    if node is None or not node.running_version or baseline.spec is None:
        return "no draft was good enough in the first phase; there is none to freeze, so the others compare with plain"
    checkpoint = await DraftFetcher(bus, path).fetch(baseline.spec, node.running_version, node.running_digest)
    used = [s.num_steps for s in node.steps if s.num_steps]
    num_steps = max(set(used), key=used.count) if used else 2
    await baseline.freeze(checkpoint, node.running_version, node.running_digest, num_steps)
    return f"frozen for comparison: draft version {node.running_version}, always {num_steps} draft steps"


def load_prompts(cache: Path) -> dict[str, list[Prompt]]:
    """Prompts of each phase; those of the third are not among those of the first."""
    code = [Prompt(text, "code") for text in prompt_data.code_prompts(cache)]
    chat = [Prompt(text, "chat") for text in prompt_data.chat_prompts(cache)]
    cut = len(code) * 5 // 8
    return {PHASES[0].name: code[:cut], PHASES[1].name: chat, PHASES[2].name: code[cut:]}


def prepare_state(state: Path, fresh: bool) -> None:
    """Make the folder for the run; `fresh` empties it first, logs included."""
    if fresh:
        shutil.rmtree(state, ignore_errors=True)
    state.mkdir(parents=True, exist_ok=True)


def log_to_file(path: Path) -> None:
    """Keep what our own use of tide_daemon logs off the screen."""
    path.parent.mkdir(exist_ok=True)
    structlog.configure(
        processors=[structlog.processors.TimeStamper(fmt="iso"), structlog.processors.JSONRenderer()],
        logger_factory=structlog.WriteLoggerFactory(path.open("a")),
    )


async def _keep(system: Stack) -> None:
    console.print(f"\nstill running, Ctrl-C stops it:\n  OpenAI endpoint  {system.openai_url}/v1  (model {MODEL})")
    for role, url in system.status_urls.items():
        console.print(f"  {role:<15}  {url}/")
    console.print(f"  broker           {system.nats_url}")
    sys.stdout.flush()
    await asyncio.Event().wait()

"""Plays the phases one after the other; after the first, the draft that "frozen" means is taken."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from demo_run.baseline import WARM_UP, Baseline
from demo_run.load import Prompt, stream_chat
from demo_run.phase_run import Load, PhaseRun
from demo_run.phases import PHASES, budgets_s
from demo_run.results import Results
from demo_run.screen import Screen
from demo_run.stage import Stage
from demo_run.timeline import Timeline, follow
from tide_daemon.bus.port import Bus
from tide_daemon.roles.draft_fetch import DraftFetcher


@dataclass(frozen=True, slots=True)
class Played:
    """A run that is over. `starts`: name and unix seconds of each phase; `num_failed`: requests of TIDE's server."""

    timeline: Timeline
    results: Results
    starts: list[tuple[str, float]]
    num_failed: int


async def play(
    stage: Stage,
    prompts: Mapping[str, Sequence[Prompt]],
    total_s: float,
    load: Load,
    console: Console,
    frozen_dir: Path,
) -> Played:
    """All phases in `total_s`.

    Args:
        prompts: by the phases' names.
        console: where it is shown; plain lines where that is no terminal.
        frozen_dir: for the frozen draft's files.
    """
    timeline, results = Timeline(), Results()
    follower = asyncio.create_task(follow(stage.bus, timeline))
    starts: list[tuple[str, float]] = []
    try:
        with Screen(timeline, total_s, console) as screen:
            phase_run = PhaseRun(
                stage.session, stage.system.openai_url, stage.baseline, timeline, results, screen, load
            )
            modes = ["plain"]
            # As the comparison server before each of its turns: the first request sets things up that later ones find.
            await stream_chat(stage.session, stage.system.openai_url, WARM_UP, 4)
            for index, (phase, seconds) in enumerate(zip(PHASES, budgets_s(total_s), strict=True)):
                starts.append((phase.name, time.time()))
                await phase_run.run(phase.name, prompts[phase.name], seconds, modes)
                if index == 0:
                    screen.say(await freeze(stage.bus, timeline, stage.baseline, frozen_dir))
                    if stage.baseline.has_frozen:
                        modes.append("frozen")
    finally:
        follower.cancel()
    return Played(timeline, results, starts, screen.num_failed)


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

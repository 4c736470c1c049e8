"""Traffic that changes and changes back: TIDE against the draft that stayed as it was, and against plain decoding.

The demonstration's own run without its screen (demo_run/play.py): real SGLang on a CPU, no draft at first; code, then
chat, then code again. Every second slice of prompts is served by the others too: plain decoding, and, once the first
phase is over, the draft that TIDE ran then with the number of steps that it used then, for ever. Same prompts, one
server at a time, the order alternating.

over_plain    token rate of TIDE over plain's, all slices that both served, all three phases
over_frozen   the same against the frozen draft, phases 2 and 3: in the first it is not there yet
*_N           the same within phase N

`--set minutes=` shortens the run; the phases keep their shares. A run in which no draft got that far has no
`over_frozen`, and fails.
"""

import asyncio
from pathlib import Path

from demo_data.packages import cache_dir
from demo_run.phase_run import Load
from demo_run.phases import PHASES
from demo_run.play import Played, play
from demo_run.stage import set_up
from demo_run.workloads import load_prompts
from rich.console import Console

from benches.serving import target_of
from benches.settings import Settings

AGAINST = ("plain", "frozen")


def run(settings: Settings) -> dict[str, float]:
    return asyncio.run(_run(settings))


async def _run(settings: Settings) -> dict[str, float]:
    target, _ = target_of(settings)
    total_s = 60.0 * settings.number("minutes", 15.0)
    load = Load.of(settings.integer("concurrency", Load().concurrency))
    # Lines on standard error, as other benches; standard output has the table.
    console = Console(stderr=True, force_terminal=False, highlight=False)
    work: Path = settings.work_dir
    async with set_up(work, target, console.print) as stage:
        played = await play(stage, load_prompts(cache_dir()), total_s, load, console, work / "frozen")
    return figures(played)


def figures(played: Played) -> dict[str, float]:
    """Ratios over the whole run and by phase, accept lengths by phase; what was not measured is left out."""
    results = played.results
    found: dict[str, float | None] = {f"over_{mode}": results.ratio(None, mode) for mode in AGAINST}
    for number, phase in enumerate(PHASES, start=1):
        for mode in AGAINST:
            found[f"over_{mode}_{number}"] = results.ratio(phase.name, mode)
        for mode in ("tide", "frozen"):
            found[f"accept_{mode}_{number}"] = results.accept_length(phase.name, mode)
    found["pairs_plain"] = float(len(results.paired(None, "plain")))
    found["pairs_frozen"] = float(len(results.paired(None, "frozen")))
    found["draft_versions"] = float(played.timeline.num_versions)
    found["requests_failed"] = float(played.num_failed)
    return {name: value for name, value in found.items() if value is not None}

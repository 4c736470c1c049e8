"""How well the policy predicts what speculation gains where it has not looked.

One SGLang with our plug-in and a draft that has learnt a little code (code_draft.py), held-out HumanEval prompts,
batch 1, 2, 4 and 8. A turn streams `batch` prompts at once with 0, 1, 2 or 3 draft steps; the four turns of a round
have the same prompts, and which goes first changes from pass to pass over the batch sizes. Once a second, as a server
node does, the plug-in's counters are read and made into a report.

The prediction for a cell (batch, steps) is the controller's own (cost model and acceptance by live reports), told
every report less that cell's counters, so it knows plain decoding there and the other cells (left_out.py). Steps of
fewer requests than the turn's, when some have ended, are told to nobody: they would be neighbours of the cell.
It is made after each round and compared with the token rate of the drafted turns over that of the plain ones, as the
client sees it while all streams run (together.py): a step's gain, no prefill in it.

error_bN_sG is |predicted / measured - 1|. `median_error_with_prefill` compares with whole turns instead, from sending
to the last token: what the model leaves out. accept_bN_sG: tokens a step and request. With --keep, reports.jsonl has
what the views were told.
"""

import asyncio
import itertools
import json
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from statistics import median

import aiohttp
from demo_run.stack import AUX_LAYERS

from benches.code_draft import draft_of, held_out_prompts
from benches.left_out import Cell, Compared, LeftOut, figures
from benches.serving import COMMAND_TIMEOUT_S, BenchServer, ours, plugged, swap_in, target_of
from benches.settings import Settings
from benches.together import while_all_run
from tide_daemon.draft import checkpoint
from tide_daemon.engine.control import ControlClient
from tide_daemon.engine.sglang.merge import parse_steps
from tide_daemon.policy.events import ServerReported, StepCount
from tide_daemon.policy.settings import PolicySettings
from tide_daemon.roles.node_report import step_key, subtract
from tide_daemon.wire.records import StepStats

BATCHES = (1, 2, 4, 8)
MAX_STEPS = 3
CELLS = [(batch, steps) for batch in BATCHES for steps in range(1, MAX_STEPS + 1)]
REPORT_INTERVAL_S = 1.0
WARM_UP_TOKENS = 24

Timed = tuple[float, float]
"""Tokens, and the seconds that they took."""


def run(settings: Settings) -> dict[str, float]:
    return asyncio.run(_run(settings))


async def _run(settings: Settings) -> dict[str, float]:
    target, _ = target_of(settings)
    num_passes, num_tokens = settings.integer("passes", 4), settings.integer("tokens", 96)
    # At batch 1 a turn is one answer; two rounds of them are a fairer share of the prompts.
    rounds_of = {1: settings.integer("rounds_b1", 2)}
    draft = draft_of(settings, target)
    prompts = held_out_prompts(target)
    server, control = await plugged(ours(target, settings.work_dir / "ours", max_steps=MAX_STEPS), tuple(AUX_LAYERS))
    try:
        await swap_in(control, draft, 1, checkpoint.load(draft).digest)
        await control.call("set_capture", COMMAND_TIMEOUT_S, collect=False, sample_rate=0.0, max_rows=0)
        grid = _Grid(server, control, settings.work_dir / "reports.jsonl")
        for batch in BATCHES:
            await grid.round(prompts[:batch], batch, 0, WARM_UP_TOKENS, counts=False)
        waiting = itertools.cycle(prompts)
        for number in range(num_passes):
            for batch in BATCHES:
                for _ in range(rounds_of.get(batch, 1)):
                    await grid.round(list(itertools.islice(waiting, batch)), batch, number, num_tokens)
    finally:
        await server.stop()
    return grid.figures()


class _Grid:
    """Turns on one server, and what is known of each cell."""

    def __init__(self, server: BenchServer, control: ControlClient, record: Path) -> None:
        self._server = server
        self._control = control
        self._reports = _Reports(control, record)
        self._running = {cell: Compared() for cell in CELLS}
        self._whole = {cell: Compared() for cell in CELLS}

    async def round(
        self, prompts: list[list[int]], batch: int, first: int, num_tokens: int, *, counts: bool = True
    ) -> None:
        """The same prompts with each number of steps, beginning with `first`; then the predictions."""
        turns: dict[int, tuple[Timed, Timed]] = {}
        for turn in range(MAX_STEPS + 1):
            num_steps = (first + turn) % (MAX_STEPS + 1)
            turns[num_steps] = await self._turn(prompts, batch, num_steps, num_tokens)
        if not counts:
            return
        for num_steps in range(1, MAX_STEPS + 1):
            cell = (batch, num_steps)
            predicted = self._reports.left_out.predicted(cell)
            for which, compared in enumerate((self._running[cell], self._whole[cell])):
                compared.predicted.append(predicted)
                compared.plain.append(turns[0][which])
                compared.drafted.append(turns[num_steps][which])
            found = self._running[cell]
            print(f"{cell}: predicted {predicted:.3f}, measured so far {found.measured_ratio:.3f}", file=sys.stderr)

    async def _turn(self, prompts: list[list[int]], batch: int, num_steps: int, num_tokens: int) -> tuple[Timed, Timed]:
        """Stream all prompts at once; what came while all ran, and the whole."""
        await self._control.call("set_steps", COMMAND_TIMEOUT_S, table=[[batch, num_steps]] if num_steps else [])
        # No prompt may be served from the prefix cache of an earlier turn.
        await self._server.flush_cache()
        reporting = asyncio.create_task(self._reports.each_second(batch))
        try:
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600)) as session:

                async def stream(ids: list[int]) -> list[tuple[float, int]]:
                    return [arrival async for arrival in self._server.stream(session, ids, num_tokens)]

                started = time.perf_counter()
                streams = await asyncio.gather(*(stream(ids) for ids in prompts))
        finally:
            reporting.cancel()
            await asyncio.gather(reporting, return_exceptions=True)
        await self._reports.take(batch)
        if any(not pieces or pieces[-1][1] != num_tokens for pieces in streams):
            raise RuntimeError(f"an answer at batch {batch} with {num_steps} steps is not whole")
        whole_s = max(pieces[-1][0] for pieces in streams) - started
        return while_all_run(streams), (float(num_tokens * batch), whole_s)

    def figures(self) -> dict[str, float]:
        """See the module."""
        found = figures(self._running)
        found["median_error_with_prefill"] = median(compared.error for compared in self._whole.values())
        return found | self._reports.accept_lengths()


class _Reports:
    """Reports of what is new in the plug-in's counters, as a server node makes them, also written to `record`.

    Attributes:
        left_out: the views that are told of them.
    """

    def __init__(self, control: ControlClient, record: Path) -> None:
        self.left_out = LeftOut(CELLS, PolicySettings())
        self._control = control
        self._record = record
        self._before: dict[Cell, StepStats] = {}
        self._sequence = 0
        self._at = time.time()
        self._tokens: Counter[Cell] = Counter()
        self._chains: Counter[Cell] = Counter()

    async def each_second(self, batch: int) -> None:
        """Report until cancelled."""
        while True:
            await asyncio.sleep(REPORT_INTERVAL_S)
            await self.take(batch)

    async def take(self, batch: int) -> None:
        """One report of the steps of `batch` requests; the others are counted and told to nobody."""
        stats = await self._control.call("stats", COMMAND_TIMEOUT_S)
        if stats["problems"]:
            raise RuntimeError(f"the plug-in has problems: {stats['problems']}")
        current = {step_key(step): step for step in parse_steps(stats["steps"])}
        new = [subtract(step, self._before.get(key)) for key, step in current.items() if key[0] == batch]
        steps = tuple(StepCount(**asdict(step)) for step in new if step.num_verifies > 0)
        at, self._sequence, self._before = time.time(), self._sequence + 1, current
        report = ServerReported(
            at, "bench", self._sequence, "ready", stats["version"], stats["digest"], 0, at - self._at, steps
        )
        self._at = at
        for step in steps:
            key = (step.batch_size, step.num_steps)
            self._tokens[key] += step.num_tokens
            self._chains[key] += step.num_proposals
        self.left_out.report(report)
        with self._record.open("a") as lines:
            lines.write(json.dumps(asdict(report)) + "\n")

    def accept_lengths(self) -> dict[str, float]:
        """Tokens a step and request, by cell."""
        return {f"accept_b{key[0]}_s{key[1]}": self._tokens[key] / self._chains[key] for key in CELLS}

"""One phase: TIDE serves slice after slice; now and then the same slice is served plainly and by the frozen draft.

Only one server is loaded at a time. The order within a comparison alternates, so that neither side
always runs first.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import aiohttp

from demo_run.baseline import Baseline
from demo_run.load import Prompt, SliceResult, run_slice
from demo_run.results import Measured, Results
from demo_run.screen import Screen
from demo_run.timeline import Timeline

COMPARE_EVERY = 2
"""Every second slice is served by the others too: half of the time learns, half of it measures."""


@dataclass(frozen=True, slots=True)
class Load:
    """How hard and how long to ask: requests at a time, requests a slice, tokens a request."""

    concurrency: int = 4
    slice_requests: int = 8
    max_tokens: int = 96

    @classmethod
    def of(cls, concurrency: int) -> "Load":
        """So many requests at a time, twice as many a slice."""
        return cls(concurrency, 2 * concurrency)


def slices_of(prompts: Sequence[Prompt], size: int) -> Iterator[list[Prompt]]:
    """Prompts in groups of `size`, for ever; a phase that outlives its prompts begins them again."""
    position = 0
    while True:
        yield [prompts[(position + i) % len(prompts)] for i in range(size)]
        position += size


@dataclass(slots=True)
class PhaseRun:
    """What all phases share."""

    session: aiohttp.ClientSession
    tide_url: str
    baseline: Baseline
    timeline: Timeline
    results: Results
    screen: Screen
    load: Load
    group: int = 0

    async def run(self, name: str, prompts: Sequence[Prompt], seconds: float, modes: Sequence[str]) -> None:
        """Serve one phase for `seconds`; `modes` are the baselines to compare with."""
        started = time.monotonic()
        self.screen.enter_phase(name, seconds)
        ticker = asyncio.create_task(self._tick(started))
        try:
            for prompts_of_slice in slices_of(prompts, self.load.slice_requests):
                if time.monotonic() - started >= seconds:
                    break
                await self._slice(name, prompts_of_slice, modes if self.group % COMPARE_EVERY == 0 else ())
                self.group += 1
        finally:
            ticker.cancel()

    async def _slice(self, phase: str, prompts: Sequence[Prompt], modes: Sequence[str]) -> None:
        order = ["tide", *modes]
        if self.group % (2 * COMPARE_EVERY):
            order.reverse()
        for mode in order:
            self.screen.doing = {"tide": "TIDE serves", "plain": "measuring plain", "frozen": "measuring frozen"}[mode]
            if mode == "tide":
                result, accept_length = await self._tide(prompts)
            else:
                result, accept_length = await self.baseline.measure(
                    mode, self.session, lambda: self._serve(self.baseline.url, prompts, None)
                )
            self.results.slices.append(Measured(phase, self.group, mode, time.time(), result, accept_length))

    async def _tide(self, prompts: Sequence[Prompt]) -> tuple[SliceResult, float | None]:
        since = time.time()
        result = await self._serve(self.tide_url, prompts, self.screen.count)
        self.screen.num_failed += result.num_failed
        # The report that covers the slice's end arrives within one report interval.
        await asyncio.sleep(1.2)
        return result, self.timeline.accept_length_since(since)

    async def _serve(
        self, url: str, prompts: Sequence[Prompt], on_request: Callable[[int], None] | None
    ) -> SliceResult:
        return await run_slice(self.session, url, prompts, self.load.concurrency, self.load.max_tokens, on_request)

    async def _tick(self, started: float) -> None:
        while True:
            self.screen.tick(time.monotonic() - started)
            await asyncio.sleep(0.5)

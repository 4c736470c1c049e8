"""One phase: TIDE serves slice after slice; each is served plainly as well, every other one by the frozen draft too.

Only one server is loaded at a time. The order alternates, so that no side always runs first.
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


def order_of(group: int, modes: Sequence[str]) -> list[str]:
    """Who serves a slice, in which order: TIDE and plain each time, the frozen draft every second time.

    Speeds of a shared machine move by several percent within a minute. Many pairs close together are what
    makes the ratio to plain, the one that must not fall below 1, known to a few percent.
    """
    order = ["tide", *(mode for mode in modes if mode == "plain" or group % 2 == 0)]
    return order[::-1] if group // 2 % 2 else order


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
                await self._slice(name, prompts_of_slice, order_of(self.group, modes))
                self.group += 1
        finally:
            ticker.cancel()

    async def _slice(self, phase: str, prompts: Sequence[Prompt], order: Sequence[str]) -> None:
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

"""A second SGLang to compare with: the same engine, plain or with a frozen draft, no daemon around it.

It captures nothing and nobody adapts it. It is loaded only while TIDE's own server is idle, and its
prefix cache is flushed before each measurement, so that no prompt is served from an earlier one.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp

from demo_run.load import Prompt, SliceResult, stream_chat
from demo_run.ports import free_port
from demo_run.waiting import StartError, poll
from tide_daemon.engine.port import CaptureSettings, DraftState, EngineStats
from tide_daemon.engine.sglang.launcher import SglangEngine
from tide_daemon.engine.sglang.settings import PluginSettings
from tide_daemon.engine.sglang.start import SglangSettings
from tide_daemon.wire.records import TargetSpec

WARM_UP = Prompt("Say hello.", "warm-up")


class Baseline:
    """One engine whose number of draft steps the demonstration sets by hand."""

    def __init__(
        self, model: str, model_dir: Path, run_dir: Path, arguments: list[str], aux_layers: list[int], vocab_size: int
    ) -> None:
        self._port = free_port()
        self._engine = SglangEngine(
            SglangSettings(
                model=model,
                node="baseline",
                run_dir=run_dir,
                model_path=model_dir,
                arguments=tuple(arguments),
                port=self._port,
                aux_layer_ids=tuple(aux_layers),
                draft_vocab_size=vocab_size,
                plugin=PluginSettings(collect=False, ring_bytes=1 << 20),
            )
        )
        self._frozen_steps = 0

    @property
    def url(self) -> str:
        """Its OpenAI endpoint."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def spec(self) -> TargetSpec | None:
        """What it serves, None until it is up."""
        return self._engine.spec

    @property
    def has_frozen(self) -> bool:
        """Whether it was given a draft."""
        return self._frozen_steps > 0

    async def start(self) -> None:
        """Start it; returns at once."""
        await self._engine.start()

    async def stop(self) -> None:
        """End it; kills what does not end within 10 s."""
        await self._engine.stop(10.0)

    async def wait_until_ready(self, timeout_s: float) -> None:
        """Return when it serves and obeys.

        Raises:
            StartError: not within the time, or its plug-in is off.
        """

        async def serves() -> bool:
            stats = await self._engine.stats()
            if stats.state == "capture_off":
                raise StartError(f"the plug-in of the comparison server is off: {stats.problems}")
            return stats.state == "ready"

        await poll(serves, timeout_s, "the comparison server")
        await self._engine.set_capture(CaptureSettings(collect=False))

    async def freeze(self, checkpoint: Path, version: int, digest: str, num_steps: int) -> None:
        """Load the draft that "frozen" means from now on, always used with `num_steps`."""
        await self._engine.swap(str(checkpoint), DraftState(version, digest))
        self._frozen_steps = num_steps

    async def measure(
        self, mode: str, session: aiohttp.ClientSession, serve: Callable[[], Awaitable[SliceResult]]
    ) -> tuple[SliceResult, float | None]:
        """Serve a slice as "plain" or "frozen"; the result and its accept length."""
        await self._engine.set_steps(((64, self._frozen_steps),) if mode == "frozen" else ())
        async with session.post(f"{self.url}/flush_cache") as response:
            await response.read()
        # The flush and the first request's set-up are not part of what is measured.
        await stream_chat(session, self.url, WARM_UP, 4)
        before = await self._engine.stats()
        result = await serve()
        return result, accept_length(before, await self._engine.stats())


def accept_length(before: EngineStats, after: EngineStats) -> float | None:
    """Tokens a request and step between two readings of cumulative counters; None without a step."""

    def totals(stats: EngineStats) -> tuple[int, int]:
        tokens = sum(s.num_tokens for s in stats.steps)
        return tokens, sum(s.num_verifies * s.batch_size for s in stats.steps)

    (tokens_then, rows_then), (tokens_now, rows_now) = totals(before), totals(after)
    return (tokens_now - tokens_then) / (rows_now - rows_then) if rows_now > rows_then else None

"""What running streams notice of draft swaps.

One SGLang with our plug-in, a draft loaded, 3 steps, `batch` streams all the time (each ends and is replaced
by another) without a break: first a warm-up, then a span without swaps, then one with 20 swaps between two
drafts. A gap is the time between two pieces of one stream; a prefill of others may lie in it, in both spans
alike. The warm-up is left out: all streams begin there at once, and their prefills make the longest gaps.

gap_ratio is the longest gap that contains a swap over the p99 gap without swaps. The longest gap of all is
reported too: the machine itself makes those.
"""

import asyncio
import time

import aiohttp
import numpy as np

from benches.serving import (
    COMMAND_TIMEOUT_S,
    BenchServer,
    ours,
    random_prompts,
    swap_in,
    target_of,
    write_random_draft_like,
)
from benches.settings import Settings
from tide_daemon.engine.control import ControlClient
from tide_daemon.engine.sglang.settings import control_socket
from tide_daemon.engine.sglang.start import command, prepare
from tide_daemon.engine.sglang.target import default_aux_layers, read_config

WARM_UP_S = 8.0
Gap = tuple[float, float]
"""Start and end of the time between two pieces of one stream."""


def run(settings: Settings) -> dict[str, float]:
    return asyncio.run(_run(settings))


async def _run(settings: Settings) -> dict[str, float]:
    target, vocab_size = target_of(settings)
    num_swaps = settings.integer("swaps", 20)
    between_s = settings.number("seconds_between_swaps", 2.0)
    batch = settings.integer("batch", 8)
    steps = settings.integer("steps", 3)
    work = settings.work_dir
    config = ours(target, work / "ours")
    prepare(config, default_aux_layers(int(read_config(target)["num_hidden_layers"])))
    drafts = [work / f"draft-{seed}" for seed in (0, 1)]
    placeholder = config.run_dir / "placeholder"
    digests = [write_random_draft_like(placeholder, draft, seed) for seed, draft in enumerate(drafts)]
    arguments, environment = command(config)
    server = BenchServer("ours", arguments, environment, config.port, config.run_dir)
    try:
        await server.ready()
        control = ControlClient(control_socket(config.run_dir, 0))

        async def swap(version: int) -> Gap:
            """Stage and swap; when it was asked for and when it was answered."""
            which = version % 2
            started = time.perf_counter()
            await swap_in(control, drafts[which], version, digests[which])
            return started, time.perf_counter()

        await swap(1)
        await control.call("set_steps", COMMAND_TIMEOUT_S, table=[[64, steps]])
        load_of = Load(server, vocab_size, batch)
        swaps: list[Gap] = []
        async with load_of:
            await asyncio.sleep(WARM_UP_S)
            quiet_since = time.perf_counter()
            await asyncio.sleep(num_swaps * between_s)
            quiet_until = time.perf_counter()
            for version in range(2, 2 + num_swaps):
                await asyncio.sleep(between_s / 2)
                swaps.append(await swap(version))
                await asyncio.sleep(between_s / 2)
        stats = await control.call("stats", COMMAND_TIMEOUT_S)
    finally:
        await server.stop()
    if stats["num_swaps"] != num_swaps + 1 or stats["problems"]:
        raise RuntimeError(f"{stats['num_swaps']} swaps, problems {stats['problems']}")
    quiet_gaps = np.array([end - start for start, end in load_of.gaps if quiet_since <= start and end <= quiet_until])
    touched = [
        end - start for start, end in load_of.gaps if any(start < s_end and s_start < end for s_start, s_end in swaps)
    ]
    p99 = float(np.percentile(quiet_gaps, 99))
    return {
        "gap_ratio": max(touched) / p99,
        "requests_lost": float(load_of.lost),
        "p99_gap_s": p99,
        "longest_gap_with_swap_s": max(touched),
        "longest_gap_without_s": float(quiet_gaps.max()),
        "median_gap_s": float(np.median(quiet_gaps)),
        "swap_s": float(np.median([end - start for start, end in swaps])),
        "requests": float(load_of.finished),
    }


class Load:
    """Streams that are replaced as they end, as long as the context lasts; it ends once the last ones have.

    Attributes:
        gaps: between pieces, of all streams so far.
        finished, lost: requests that got all their tokens, and that did not.
    """

    def __init__(self, server: BenchServer, vocab_size: int, batch: int) -> None:
        self._server = server
        self._vocab_size = vocab_size
        self._batch = batch
        self._rng = np.random.default_rng(0)
        self._ending = False
        self.gaps: list[Gap] = []
        self.finished = 0
        self.lost = 0

    async def __aenter__(self) -> None:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600))
        self._clients = [asyncio.create_task(self._client()) for _ in range(self._batch)]

    async def __aexit__(self, *_: object) -> None:
        self._ending = True
        await asyncio.gather(*self._clients)
        await self._session.close()

    async def _client(self) -> None:
        while not self._ending:
            await self._request()

    async def _request(self) -> None:
        (ids,) = random_prompts(self._rng, 1, 32, self._vocab_size)
        num_tokens = int(self._rng.integers(60, 120))
        last, whole = 0.0, False
        try:
            async for arrived, count in self._server.stream(self._session, ids, num_tokens):
                if last:
                    self.gaps.append((last, arrived))
                last, whole = arrived, count == num_tokens
        except (aiohttp.ClientError, KeyError, ValueError):
            whole = False
        if whole:
            self.finished += 1
        else:
            self.lost += 1

"""What TIDE gains where its draft fits, and that it loses nothing where the draft does not.

The real system, a process a role (nats-server, server with SGLang, trainer, controller), next to an SGLang
without plug-in and without any speculation flag. First HumanEval prompts are served, 8 at a time, and the
draft learns from them. Then the trainer is stopped, so that the draft stays as it is, and held-out HumanEval
prompts are served by both in turn, 1, 4 and 8 at a time; then chat prompts, 8 at a time, with that same draft.

speedup_b* and stale_b8 are TIDE's token rate over plain's: the same prompts, the same number of tokens, one
server after the other, slice by slice, the order alternating, because the speed of a shared machine wanders within
seconds; totals over all slices, *_error is the standard error of the slices' ratios. Before the HumanEval slices of a
batch size one slice is served that does not count, so that the controller has seen the batch size; chat counts
from its first request on.
"""

import asyncio
import math
import statistics
import sys
import time
from contextlib import AsyncExitStack
from itertools import islice

import aiohttp
from demo_data.packages import cache_dir
from demo_data.prompts import chat_prompts, code_prompts
from demo_run.load import Prompt, SliceResult, run_slice
from demo_run.phase_run import slices_of
from demo_run.processes import Child, Children
from demo_run.stack import SERVER_ARGUMENTS, start_roles, wait_until_ready
from demo_run.timeline import Timeline, follow

from benches.serving import START_LIMIT_S, BenchServer, target_of, without_plugin
from benches.settings import Settings
from tide_daemon.bus.connection import ConnectSettings
from tide_daemon.bus.embedded import EmbeddedServer, EmbeddedSettings
from tide_daemon.bus.jetstream import JetStreamBus
from tide_daemon.bus.topology import TopologyLimits, build_topology

NUM_HELD_OUT = 40


def run(settings: Settings) -> dict[str, float]:
    return asyncio.run(_run(settings))


async def _run(settings: Settings) -> dict[str, float]:
    target, _ = target_of(settings)
    work = settings.work_dir
    children = Children(work / "log")
    async with AsyncExitStack() as stack:
        topology = build_topology(TopologyLimits())
        nats = EmbeddedServer(EmbeddedSettings(work / "nats", topology.max_bytes), told=print)
        await nats.start()
        stack.push_async_callback(nats.stop)
        stack.callback(children.stop)
        system, roles = await start_roles(children, work, target, nats.url, SERVER_ARGUMENTS)
        plain = without_plugin(target, work / "plain", "plain", *SERVER_ARGUMENTS)
        stack.push_async_callback(plain.stop)
        for role, child in roles.items():
            await wait_until_ready(child, f"{system.status_urls[role]}/readyz", START_LIMIT_S)
        await plain.ready()
        bus = await JetStreamBus.connect(ConnectSettings((nats.url,), "bench"), topology)
        stack.push_async_callback(bus.close)
        timeline = Timeline()
        follower = asyncio.create_task(follow(bus, timeline))
        stack.callback(follower.cancel)
        timeout = aiohttp.ClientTimeout(total=300)
        # A new connection for each request: a kept one may be closed by its server in the moment that it is used again.
        connector = aiohttp.TCPConnector(force_close=True)
        session = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout, connector=connector))
        bench = _Bench(session, system.openai_url, plain, settings.integer("tokens", 96))

        chat = [Prompt(text, "chat") for text in chat_prompts(cache_dir(), 400)]
        code = [Prompt(text, "code") for text in code_prompts(cache_dir())]
        held_out, others = code[-NUM_HELD_OUT:], code[:-NUM_HELD_OUT]
        await _learn(bench, others, roles["trainer"], timeline, settings.number("learn_minutes", 8.0))
        figures = {"draft_versions": float(timeline.node.running_version if timeline.node else 0)}
        for batch in (1, 4, 8):
            count = settings.integer(f"slices_b{batch}", {1: 8, 4: 10, 8: 5}[batch])
            await bench.tide(held_out[: max(4, batch)], batch)
            since = time.time()
            figures |= await bench.compare(f"speedup_b{batch}", held_out, batch, count)
            figures[f"accept_b{batch}"] = timeline.accept_length_since(since) or 0.0
        since = time.time()
        figures |= await bench.compare("stale_b8", chat, 8, settings.integer("slices_stale", 16))
        figures["accept_stale_b8"] = timeline.accept_length_since(since) or 0.0
        return figures


async def _learn(bench: "_Bench", prompts: list[Prompt], trainer: Child, timeline: Timeline, minutes: float) -> None:
    """Serve prompts until the time is over, then end the trainer."""
    end = time.monotonic() + 60 * minutes
    for some in slices_of(prompts, 16):
        if time.monotonic() >= end:
            break
        await bench.tide(some, 8)
        node = timeline.node
        _say(f"learning: version {node.running_version if node else 0}, {len(timeline.points)} reports")
    trainer.popen.terminate()
    await asyncio.to_thread(trainer.popen.wait)


class _Bench:
    """Slices served by TIDE's server and by the plain one."""

    def __init__(self, session: aiohttp.ClientSession, tide_url: str, plain: BenchServer, max_tokens: int) -> None:
        self._session = session
        self._tide_url = tide_url
        self._plain = plain
        self._max_tokens = max_tokens

    async def tide(self, prompts: list[Prompt], batch: int) -> SliceResult:
        return await self._serve(self._tide_url, prompts, batch)

    async def compare(self, name: str, prompts: list[Prompt], batch: int, count: int) -> dict[str, float]:
        """Token rate of TIDE over plain on `count` slices of the same prompts, and its standard error over slices."""
        rates: dict[str, list[SliceResult]] = {"tide": [], "plain": []}
        for number, some in enumerate(islice(slices_of(prompts, max(4, batch)), count)):
            order = ["tide", "plain"] if number % 2 == 0 else ["plain", "tide"]
            for name in order:
                url = self._tide_url if name == "tide" else self._plain.url
                # No prompt may be served from the prefix cache of an earlier slice, on either side.
                async with self._session.post(f"{url}/flush_cache") as response:
                    await response.read()
                rates[name].append(await self._serve(url, some, batch))
            _say(
                f"batch {batch}, slice {number}: "
                + ", ".join(f"{k} {v[-1].tokens_per_s:.1f}" for k, v in rates.items())
            )
        total = {k: sum(r.num_tokens for r in v) / sum(r.wall_s for r in v) for k, v in rates.items()}
        ratios = [a.tokens_per_s / b.tokens_per_s for a, b in zip(rates["tide"], rates["plain"], strict=True)]
        figures = {name: total["tide"] / total["plain"]}
        if len(ratios) > 1:  # JSON has no NaN
            figures[f"{name}_error"] = statistics.stdev(ratios) / math.sqrt(len(ratios))
        return figures

    async def _serve(self, url: str, prompts: list[Prompt], batch: int) -> SliceResult:
        result = await run_slice(self._session, url, prompts, batch, self._max_tokens)
        if result.num_failed:
            raise RuntimeError(f"{result.num_failed} requests failed at {url}")
        return result


def _say(text: str) -> None:
    print(text, file=sys.stderr)

"""What TIDE gains where its draft fits, and that it loses nothing where the draft does not.

The real system, a process a role (nats-server, server with SGLang, trainer, controller), next to an SGLang
without plug-in and without any speculation flag. First HumanEval prompts are served, 8 at a time, and the
draft learns from them. Then the trainer is stopped, so that the draft stays as it is, and held-out HumanEval
prompts are served by both in turn, 1, 4 and 8 at a time; then chat prompts, 8 at a time, with that same draft.

speedup_b* and stale_b8 are TIDE's token rate over plain's: slices of prompts, served by both, which take turns of
`turn_s` (alternate.py; SGLang and its daemon stand still together, the controller does not); totals over all prompts,
*_error is the standard error of the slices' ratios. A slice has four prompts for each that runs at once: at its end the
batch shrinks, for longer under speculation, where answers of one length end at different times. Before the HumanEval
prompts of a batch size some are served that do not count, so that the controller has seen the batch size; chat counts
from its first request on.
"""

import asyncio
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import islice

import aiohttp
from demo_data.packages import cache_dir
from demo_data.prompts import chat_prompts, code_prompts
from demo_run.load import Prompt, SliceResult, run_slice
from demo_run.phase_run import slices_of
from demo_run.processes import Child, Children
from demo_run.stack import SERVER_ARGUMENTS, engine_pid, start_roles, wait_until_ready
from demo_run.timeline import Timeline, follow

from benches.alternate import Group, Joined, Side, alternate, standard_error
from benches.serving import START_LIMIT_S, target_of, without_plugin
from benches.settings import Settings
from tide_daemon.bus.connection import ConnectSettings
from tide_daemon.bus.embedded import EmbeddedServer, EmbeddedSettings
from tide_daemon.bus.jetstream import JetStreamBus
from tide_daemon.bus.topology import TopologyLimits, build_topology

NUM_HELD_OUT = 40
PROMPTS_A_PLACE = 4


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
        tide = _Served(system.openai_url, Joined(Group(engine_pid(work)), Group(roles["server"].popen.pid)))
        plain.pause()
        bench = _Bench(session, tide, _Served(plain.url, plain), settings)

        chat = [Prompt(text, "chat") for text in chat_prompts(cache_dir(), 400)]
        code = [Prompt(text, "code") for text in code_prompts(cache_dir())]
        held_out, others = code[-NUM_HELD_OUT:], code[:-NUM_HELD_OUT]
        await _learn(bench, others, roles["trainer"], timeline, settings.number("learn_minutes", 8.0))
        figures = {"draft_versions": float(timeline.node.running_version if timeline.node else 0)}
        for batch in (1, 4, 8):
            count = settings.integer(f"slices_b{batch}", {1: 8, 4: 3, 8: 2}[batch])
            await bench.tide(held_out[: max(4, batch)], batch)
            since = time.time()
            figures |= await bench.compare(f"speedup_b{batch}", held_out, batch, count)
            figures[f"accept_b{batch}"] = timeline.accept_length_since(since) or 0.0
        since = time.time()
        figures |= await bench.compare("stale_b8", chat, 8, settings.integer("slices_stale", 4))
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


@dataclass(frozen=True, slots=True)
class _Served:
    """An SGLang and all that stands still with it."""

    url: str
    side: Side


class _Bench:
    """Slices of prompts served by TIDE's server and by the plain one, which is paused in between."""

    def __init__(self, session: aiohttp.ClientSession, tide: _Served, plain: _Served, settings: Settings) -> None:
        self._session = session
        self._served = {"tide": tide, "plain": plain}
        self._max_tokens = settings.integer("tokens", 96)
        self._turn_s = settings.number("turn_s", 3.0)

    async def tide(self, prompts: list[Prompt], batch: int) -> SliceResult:
        return await self._serve(self._served["tide"].url, prompts, batch)

    async def compare(self, name: str, prompts: list[Prompt], batch: int, count: int) -> dict[str, float]:
        """Token rate of TIDE over plain on `count` slices of the same prompts, and its standard error over slices."""
        tokens, seconds = dict.fromkeys(self._served, 0), dict.fromkeys(self._served, 0.0)
        ratios = []
        for number, some in enumerate(islice(slices_of(prompts, PROMPTS_A_PLACE * batch), count)):
            rates = {}
            for side, (result, wall_s) in (await self._both(some, batch, tide_first=number % 2 == 0)).items():
                tokens[side] += result.num_tokens
                seconds[side] += wall_s
                rates[side] = result.num_tokens / wall_s
            ratios.append(rates["tide"] / rates["plain"])
            _say(f"batch {batch}, slice {number}: " + ", ".join(f"{side} {rate:.1f}" for side, rate in rates.items()))
        ratio = tokens["tide"] / seconds["tide"] / (tokens["plain"] / seconds["plain"])
        return {name: ratio, **standard_error(f"{name}_error", ratios)}

    async def _both(
        self, prompts: list[Prompt], batch: int, *, tide_first: bool
    ) -> dict[str, tuple[SliceResult, float]]:
        """What each side answered to the prompts and the seconds that it ran for them. TIDE runs again afterwards."""
        order = ["tide", "plain"] if tide_first else ["plain", "tide"]
        served = [self._served[name] for name in order]
        for one in served:
            one.side.resume()
            # No prompt may be served from the prefix cache of an earlier slice, on either side.
            async with self._session.post(f"{one.url}/flush_cache") as response:
                await response.read()
            one.side.pause()
        works = [self._serve(one.url, prompts, batch) for one in served]
        found = await alternate([one.side for one in served], works, self._turn_s)
        self._served["tide"].side.resume()
        return dict(zip(order, found, strict=True))

    async def _serve(self, url: str, prompts: list[Prompt], batch: int) -> SliceResult:
        result = await run_slice(self._session, url, prompts, batch, self._max_tokens)
        if result.num_failed:
            raise RuntimeError(f"{result.num_failed} requests failed at {url}")
        return result


def _say(text: str) -> None:
    print(text, file=sys.stderr)

"""Whether any process grows while the whole system works: resident memory over time, after warm-up.

The system of the demonstration: nats-server, three role processes, a training worker, SGLang, under
four requests at a time of the demonstration's prompts. Warm-up ends when its minutes are over and a
first training round has ended, because a worker's memory before that says nothing. It is ten minutes,
because SGLang's scheduler generates code for each shape that it meets, and new ones come for some
minutes. A process's growth is how fast what it holds grows: the median slope (Theil-Sen) over the
lowest samples of each 200 s, see resident.py; slope is the same over all samples. The ring is
small here, so that all of it has been touched when warm-up ends: shared memory counts in both
processes that map it. With --keep, samples.json has every sample.
"""

import asyncio
import itertools
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import aiohttp
from demo_data import packages
from demo_data import prompts as prompt_data
from demo_run.load import Prompt, run_slice
from demo_run.ports import free_port
from demo_run.processes import Child, Children
from demo_run.stack import ROLES, SERVER_ARGUMENTS, role_config, to_toml, wait_until_ready
from demo_run.waiting import READY_TIMEOUT_S

from benches.resident import Series, Watched
from benches.serving import target_of
from benches.settings import Settings
from tide_daemon.bus.embedded import EmbeddedServer, EmbeddedSettings
from tide_daemon.bus.topology import TopologyLimits, build_topology

RING_BYTES = 8 << 20
FIRST_ROUND_S = 900.0
"""Warm-up waits at most this long for the first round."""
MIN_SAMPLES = 6


def run(settings: Settings) -> dict[str, float]:
    """Figures: the worst growth, the controller's size, and both for each process."""
    return asyncio.run(_run(settings))


@dataclass(slots=True)
class System:
    """The running system and what was seen of it."""

    roles: dict[str, Child]
    nats: EmbeddedServer
    engine_file: Path
    trainer_url: str
    openai_url: str
    watched: Watched = field(default_factory=Watched)
    num_tokens: int = 0
    num_failed: int = 0

    def sample(self) -> None:
        """One sample of every process; RuntimeError if one that must not end has ended."""
        for name, child in self.roles.items():
            if not child.running:
                raise RuntimeError(f"the {name} ended with code {child.popen.poll()}:\n{child.last_lines()}")
        heads = {name: child.popen.pid for name, child in self.roles.items()}
        heads["nats"] = self.nats.pid or 0
        heads["sglang"] = int(json.loads(self.engine_file.read_text())["pid"])
        self.watched.sample(heads)

    async def first_round_has_ended(self, session: aiohttp.ClientSession) -> bool:
        """Whether the trainer has ended a round, by publishing or by giving it up."""
        async with session.get(f"{self.trainer_url}/status") as response:
            shown = (await response.json())["roles"]["trainer"]["snapshot"]
        return bool(shown["round"]) and shown["state"] in ("waiting", "failed")


async def _run(settings: Settings) -> dict[str, float]:
    target, _ = target_of(settings)
    minutes = settings.number("minutes", 10.0)
    warm_up_s = 60 * settings.number("warm_up_minutes", 10.0)
    interval_s = settings.number("interval_s", 5.0)
    concurrency = settings.integer("concurrency", 4)
    max_tokens = settings.integer("tokens", 96)
    children = Children(settings.work_dir / "log")
    nats = EmbeddedServer(
        EmbeddedSettings(settings.work_dir / "nats", build_topology(TopologyLimits()).max_bytes), told=print
    )
    try:
        await nats.start()
        system = await _start(children, settings.work_dir, target, nats)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session:
            load = asyncio.create_task(_load(session, system, concurrency, max_tokens))
            try:
                return await _measure(system, session, load, warm_up_s, 60 * minutes, interval_s, settings.work_dir)
            finally:
                load.cancel()
                await asyncio.gather(load, return_exceptions=True)
    finally:
        await asyncio.to_thread(children.stop)
        await nats.stop()


async def _start(children: Children, work_dir: Path, target: Path, nats: EmbeddedServer) -> System:
    port, ports = free_port(), {role: free_port() for role in ROLES}
    roles = {}
    for role in ROLES:
        config = role_config(role, work_dir, target, nats.url, port, ports[role], SERVER_ARGUMENTS)
        if role == "server":
            config["capture"] = {"ring_bytes": RING_BYTES}
        path = work_dir / f"{role}.toml"
        path.write_text(to_toml(config))
        command = [str(Path(sys.executable).with_name("tide-daemon")), "--role", role, "--config", str(path)]
        roles[role] = children.start(role, command)
    for role, child in roles.items():
        await wait_until_ready(child, f"http://127.0.0.1:{ports[role]}/readyz", READY_TIMEOUT_S)
    engine_file = work_dir / "server" / "run" / "engine" / "engine.json"
    return System(roles, nats, engine_file, f"http://127.0.0.1:{ports['trainer']}", f"http://127.0.0.1:{port}")


async def _load(session: aiohttp.ClientSession, system: System, concurrency: int, max_tokens: int) -> None:
    """Requests for ever, code and chat in turn."""
    cache = packages.cache_dir()
    code, chat = await asyncio.to_thread(lambda: (prompt_data.code_prompts(cache), prompt_data.chat_prompts(cache)))
    mixed = [
        Prompt(text, name)
        for pair in zip(code, chat, strict=False)
        for text, name in zip(pair, ("code", "chat"), strict=True)
    ]
    for start in itertools.count(step=2 * concurrency):
        part = [mixed[(start + index) % len(mixed)] for index in range(2 * concurrency)]
        result = await run_slice(session, system.openai_url, part, concurrency, max_tokens)
        system.num_tokens += result.num_tokens
        system.num_failed += result.num_failed


async def _measure(
    system: System,
    session: aiohttp.ClientSession,
    load: "asyncio.Task[None]",
    warm_up_s: float,
    span_s: float,
    interval_s: float,
    work_dir: Path,
) -> dict[str, float]:
    began = time.monotonic()
    start = None
    while start is None or time.monotonic() < start + span_s:
        if load.done():
            load.result()
        await asyncio.to_thread(system.sample)
        now = time.monotonic()
        if start is None and now - began >= warm_up_s:
            ended = await system.first_round_has_ended(session)
            if ended or now - began >= FIRST_ROUND_S:
                start = now
                print(f"warm-up ended after {now - began:.0f} s", file=sys.stderr)
        await asyncio.sleep(interval_s)
    (work_dir / "samples.json").write_text(json.dumps([asdict(series) for series in system.watched.series.values()]))
    return _figures(system, start, warm_up_s)


def _figures(system: System, start: float, warm_up_s: float) -> dict[str, float]:
    """A process that came later has a warm-up of its own; one that was not there for long has no slope."""
    measured: dict[str, Series] = {}
    for series in system.watched.series.values():
        steady = series.after(max(start, series.samples[0][0] + warm_up_s))
        longest = measured.get(series.name)
        if len(steady.samples) >= MIN_SAMPLES and (longest is None or len(steady.samples) > len(longest.samples)):
            measured[series.name] = steady
    growth = {name: series.growth_mb_per_hour() for name, series in sorted(measured.items())}
    return {
        "growth_mb_per_hour": max(growth.values()),
        "controller_mb": measured["controller"].median_mb(),
        "tokens": float(system.num_tokens),
        "requests_failed": float(system.num_failed),
        **{f"{name}_growth_mb_per_hour": value for name, value in growth.items()},
        **{f"{name}_slope_mb_per_hour": series.slope_mb_per_hour() for name, series in sorted(measured.items())},
        **{f"{name}_mb": series.median_mb() for name, series in sorted(measured.items()) if name != "controller"},
    }

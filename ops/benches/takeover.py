"""Two real controllers on a real nats-server; the leader is killed and frozen, again and again.

Both are `tide-daemon --role controller` processes. Three fake nodes and a fake trainer (takeover_fleet.py)
report all the time, so that there are steps, rounds, verdicts and rollouts to decide. In each turn the leader
gets SIGKILL or SIGSTOP; in every second turn at the moment when an entry with an instruction for a node shows
in the journal, so that what it asks for may not have been written yet. A killed one is started again and
waits; a frozen one gets SIGCONT when its successor has led for a while, and must not be heard any more.

worst_lease_periods   longest time from the signal to the first journal entry of the successor, over the lease's
                      time to live
lost, doubled         counts over the whole run of what takeover_ledger.py defines; each with its kinds in the log
worst_stall_s         longest time for which this process itself stood still: on a machine that is busy with something
                      else, the other figures are about that

Options: turns (of each kind), lease_s, seed.
"""

import asyncio
import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from demo_run.ports import free_port

from benches.machine import ROOT
from benches.settings import Settings
from benches.takeover_fleet import MODEL, NODES, FakeNode, FakeTrainer, records
from benches.takeover_ledger import Ledger
from tide_daemon.bus.connection import ConnectSettings
from tide_daemon.bus.embedded import EmbeddedServer, EmbeddedSettings
from tide_daemon.bus.jetstream import JetStreamBus
from tide_daemon.bus.topology import MIB, TopologyLimits, build_topology
from tide_daemon.wire import subjects
from tide_daemon.wire.records import Decision, DesiredServer, DesiredTrainer

CONTROLLERS = ("controller-1", "controller-2")
START_LIMIT_S = 90.0
AT_DECISION_LIMIT_S = 10.0
"""How long a turn waits for a decision to strike at; there is one every few seconds."""
LEAD_FOR_S = 2.0
"""How long a successor leads before its predecessor comes back and the books are looked at."""
ARRIVAL_S = 1.5
"""A decision that was journalled so long ago must stand as desired state."""
GIVE_UP_PERIODS = 20.0
_STALL_TICK_S = 0.02
LIMITS = TopologyLimits(hidden_max_bytes=16 * MIB, draft_max_bytes=64 * MIB, target_max_bytes=16 * MIB)
_CONFIG = """
[node]
name = "{name}"
model = "{model}"
state_dir = "{state}"
[bus]
url = "{url}"
hidden_max_bytes = {limits.hidden_max_bytes}
draft_max_bytes = {limits.draft_max_bytes}
target_max_bytes = {limits.target_max_bytes}
[status]
port = {port}
[log]
format = "json"
[controller]
lease_ttl_s = {lease_s}
tick_s = 0.5
dwell_s = 0.5
off_dwell_s = 0.5
probe_interval_s = 1.0
probe_share = 0.1
train_first_tokens = 1000
train_min_tokens = 3000
watch_min_steps = 60
watch_s = 2.0
rollout_deadline_s = 30.0
"""


@dataclass(slots=True)
class Controller:
    """One controller process and how it is started again."""

    name: str
    config: Path
    port: int
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Start it; its output goes beside its configuration."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        with self.config.with_suffix(".log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tide_daemon", "--role", "controller", "--config", str(self.config)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
            )  # fmt: skip

    def send(self, how: signal.Signals) -> None:
        """Send a signal; after SIGKILL wait until it is gone."""
        assert self.process is not None
        self.process.send_signal(how)
        if how == signal.SIGKILL:
            self.process.wait()

    def is_ready(self) -> bool:
        """Whether it leads or stands by."""
        if self.process is None or self.process.poll() is not None:
            raise RuntimeError(f"{self.name} ended, see {self.config.with_suffix('.log')}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=1) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def end(self) -> None:
        """By force if it does not end by itself."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(15)
        self.process.kill()
        self.process.wait()


@dataclass(slots=True)
class Watch:
    """What the journal's tail has shown: who leads, and waiting for something to show."""

    ledger: Ledger = field(default_factory=Ledger)
    leader: str = ""
    token: int = 0
    token_since: float = 0.0
    asked_at: float = 0.0
    worst_stall_s: float = 0.0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def entry(self, entry: Decision) -> None:
        """The next journal entry."""
        self.ledger.journalled(entry)
        if entry.fencing_token > self.token:
            self.token, self.leader, self.token_since = entry.fencing_token, entry.controller, time.monotonic()
        if any(item["instruction"] == "set_server" for item in entry.instructions):
            self.asked_at = time.monotonic()
        self.changed.set()

    async def stalls(self) -> None:
        """Measure how long nothing ran here."""
        before = time.monotonic()
        while True:
            await asyncio.sleep(_STALL_TICK_S)
            now = time.monotonic()
            self.worst_stall_s = max(self.worst_stall_s, now - before - _STALL_TICK_S)
            before = now

    async def until(self, condition: Callable[[], bool], limit_s: float) -> bool:
        """Whether the condition came true within the limit; looks at every entry."""
        try:
            async with asyncio.timeout(limit_s):
                while not condition():
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            return False
        return True


def run(settings: Settings) -> dict[str, float]:
    """Kill and freeze the leader in turn; see the module docstring."""
    turns, lease_s = settings.integer("turns", 20), settings.integer("lease_s", 2)
    return asyncio.run(_run(settings.work_dir, turns, lease_s, random.Random(settings.integer("seed", 1))))


async def _run(folder: Path, turns: int, lease_s: int, rng: random.Random) -> dict[str, float]:
    topology = build_topology(LIMITS)
    server = EmbeddedServer(EmbeddedSettings(folder / "nats", topology.max_bytes), told=print)
    url = await server.start()
    controllers = {name: _controller(folder, name, url, lease_s) for name in CONTROLLERS}
    bus = await JetStreamBus.connect(ConnectSettings((url,), "bench"), topology)
    tasks: list[asyncio.Task[None]] = []
    try:
        await bus.ensure()
        watch = Watch()
        nodes = [FakeNode(bus, name, random.Random(rng.random()), watch.ledger.taken) for name in NODES]
        trainer = FakeTrainer(bus, random.Random(rng.random()), watch.ledger.taken)
        work = [_follow_journal(bus, watch), _follow_control(bus, watch.ledger), watch.stalls()]
        work += [each() for actor in (*nodes, trainer) for each in (actor.obey, actor.report)]
        tasks = [asyncio.create_task(each) for each in work]
        for controller in controllers.values():
            controller.start()
            await _ready(controller)
        if not await watch.until(lambda: watch.token > 0, START_LIMIT_S):
            raise RuntimeError(f"nobody leads, see the logs in {folder}")
        periods: dict[str, list[float]] = {"kill": [], "freeze": []}
        for turn in range(2 * turns):
            kind = "kill" if turn % 2 == 0 else "freeze"
            at_decision = turn % 4 >= 2
            waited = await _turn(controllers, watch, kind, at_decision, lease_s, rng)
            periods[kind].append(waited)
            wrong = dict(+watch.ledger.lost + +watch.ledger.doubled)
            print(f"turn {turn + 1}, {kind}{' at a decision' if at_decision else ''}: {waited:.2f} lease periods"
                  f"{f'; so far {wrong}' if wrong else ''}", file=sys.stderr)  # fmt: skip
            for task in tasks:
                if task.done():
                    task.result()
    finally:
        for controller in controllers.values():
            await asyncio.to_thread(controller.end)
        await asyncio.sleep(0.5)  # what was written last is read by the tails
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await bus.close()
        await server.stop()
    ledger = watch.ledger
    ledger.close()
    for name, kinds in (("lost", ledger.lost), ("doubled", ledger.doubled)):
        print(f"{name}: {dict(+kinds) or 'nothing'}", file=sys.stderr)
    every = periods["kill"] + periods["freeze"]
    return {
        "worst_lease_periods": max(every),
        "lost": float(ledger.lost.total()),
        "doubled": float(ledger.doubled.total()),
        "worst_kill": max(periods["kill"]),
        "worst_freeze": max(periods["freeze"]),
        "median_lease_periods": statistics.median(every),
        "worst_stall_s": watch.worst_stall_s,
        "num_decisions": float(ledger.num_decisions),
        "num_reigns": float(ledger.num_reigns),
        "num_candidates": float(trainer.num_published),
    }


def _controller(folder: Path, name: str, url: str, lease_s: int) -> Controller:
    port = free_port()
    config = folder / f"{name}.toml"
    config.write_text(
        _CONFIG.format(name=name, model=MODEL, state=folder / name, url=url, port=port, lease_s=lease_s, limits=LIMITS)
    )
    return Controller(name, config, port)


async def _ready(controller: Controller) -> None:
    give_up_at = time.monotonic() + START_LIMIT_S
    while not await asyncio.to_thread(controller.is_ready):
        if time.monotonic() > give_up_at:
            raise RuntimeError(f"{controller.name} is not ready, see {controller.config.with_suffix('.log')}")
        await asyncio.sleep(0.1)


async def _turn(
    controllers: dict[str, Controller], watch: Watch, kind: str, at_decision: bool, lease_s: int, rng: random.Random
) -> float:
    """Strike the leader once; returns lease periods until its successor's first entry."""
    await asyncio.sleep(rng.uniform(0.0, lease_s))
    if at_decision:
        began = time.monotonic()
        await watch.until(lambda: watch.asked_at > began, AT_DECISION_LIMIT_S)
    leader, token = controllers[watch.leader], watch.token
    struck_at = time.monotonic()
    leader.send(signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
    if not await watch.until(lambda: watch.token > token, GIVE_UP_PERIODS * lease_s):
        if kind == "freeze":
            leader.send(signal.SIGCONT)
        raise RuntimeError(f"nobody took over from {leader.name} within {GIVE_UP_PERIODS:g} lease periods")
    waited = (watch.token_since - struck_at) / lease_s
    await asyncio.sleep(LEAD_FOR_S)
    if kind == "kill":
        leader.start()
    else:
        leader.send(signal.SIGCONT)
    await _ready(leader)
    asked = watch.ledger.asked()
    await asyncio.sleep(ARRIVAL_S)
    watch.ledger.arrived(asked)
    return waited


async def _follow_journal(bus: JetStreamBus, watch: Watch) -> None:
    async for record in records(bus.tail(subjects.journal(MODEL), since="all")):
        assert isinstance(record, Decision)
        watch.entry(record)


async def _follow_control(bus: JetStreamBus, ledger: Ledger) -> None:
    async for record in records(bus.tail(subjects.all_control(MODEL), since="all")):
        assert isinstance(record, DesiredServer | DesiredTrainer)
        ledger.desired(record)

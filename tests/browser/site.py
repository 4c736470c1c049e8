"""What a page of the browser tests shows: a real broker, real daemons, and two played members of the fleet.

Daemons of their own processes: a controller, whose page is looked at, and a server `n1` with a modelled engine. Played
from here over the same broker, with the records that real ones send: a server `gpu-2`, which obeys what it is asked
for, and a trainer `t1`, which trains. Three real drafts are on the bus.
"""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tests.nats_deployment import free_ports
from tests.nats_fixture import NatsServer
from tests.unit.policy.simulated_fleet import ModelledNode
from tests.unit.trainer.test_publish import make_round
from tide_daemon.bus.connection import ConnectSettings
from tide_daemon.bus.jetstream import JetStreamBus
from tide_daemon.bus.topology import TopologyLimits, build_topology
from tide_daemon.engine.modelled import TINY_TARGET
from tide_daemon.errors import BusError
from tide_daemon.policy.events import ServerReported
from tide_daemon.policy.instructions import SetServer
from tide_daemon.roles.draft_publish import Publisher
from tide_daemon.tools.operator_request import ask
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.records import (
    NO_DRAFT,
    Decision,
    DesiredServer,
    DraftManifest,
    NodeReport,
    Record,
    RequestScore,
    ShadowScore,
    StepStats,
    TrainerReport,
)

MODEL = "m"
TOPOLOGY = build_topology(TopologyLimits())
SPEC = replace(TINY_TARGET, model=MODEL)
LIMIT_S = 90.0
ROUND_STEPS = 600


def _scores(num_requests: int, accept_length: float) -> tuple[RequestScore, ...]:
    return tuple(
        RequestScore(f"{number:016x}", "chat", 0, 100, 100.0, 100 * accept_length) for number in range(num_requests)
    )


SCORES = (_scores(10, 1.0), _scores(4, 1.31), _scores(6, 1.62))
"""Version 1 gains nothing; of 2 and 3 there is too little for the gate."""


class Daemon:
    """A daemon as a process, with its page on a port that stays the same."""

    def __init__(self, role: str, folder: Path, nats_url: str, **settings: object) -> None:
        self.folder = folder / role
        self.folder.mkdir(exist_ok=True)
        (self.port,) = free_ports(1)
        wanted = {
            "bus.url": nats_url, "bus.connect_timeout_s": 30, "node.state_dir": self.folder / "state",
            "node.model": MODEL, "status.port": self.port, **settings,
        }  # fmt: skip
        words = [word for key, value in wanted.items() for word in ("--set", f"{key}={value}")]
        self._command = [sys.executable, "-m", "tide_daemon", "--role", role, *words]
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TIDE_")}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log, env=environment)

    def kill(self) -> None:
        """kill -9, as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        """SIGTERM; returns the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


class Site:
    """All of it. `folder` takes everything that is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nats = NatsServer(folder / "nats")
        self.node = ModelledNode(
            "gpu-2", lambda version, at: 0.7 if version else 0.0, lambda at: 4, random.Random(0), swap_s=0.0
        )
        self.trouble = ""
        self.drafts: list[DraftManifest] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        self.nats.start()
        self.bus = await JetStreamBus.connect(ConnectSettings((self.nats.url,), "test", reconnect_wait_s=0.2), TOPOLOGY)
        await self.bus.ensure()
        publisher = Publisher(self.bus, SPEC, "t1", 8)
        for number, scores in enumerate(SCORES, start=1):
            round_ = make_round(self.folder / "trainer", number)
            self.drafts.append(await publisher.publish(round_, scores, 3, None, NO_DRAFT))
        url = self.nats.url
        controller = {"node.name": "c1", "controller.watch_s": 2, "controller.dwell_s": 1}
        self.controller = Daemon("controller", self.folder, url, **controller)
        server = {"node.name": "n1", "server.mode": "modelled", "capture.sample_rate": 0.2}
        self.server = Daemon("server", self.folder, url, **server)
        self._tasks = [asyncio.create_task(work()) for work in (self._follow, self._serve, self._train)]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.bus.close()
        for daemon in (self.server, self.controller):
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.end()
        self.nats.stop()

    async def deploy(self, version: int) -> None:
        """As an operator does, with `tide-daemon drafts pin`."""
        answer = await ask(self.bus, MODEL, "pin", self.drafts[version - 1], "to be looked at", LIMIT_S)
        assert answer.granted, answer.reason

    async def judged(self) -> None:
        """Until the gate has answered every draft: promoted none, for an operator to choose."""
        answered: set[object] = set()
        async with asyncio.timeout(LIMIT_S):
            async for message in self.bus.tail(subjects.journal(MODEL), since="all"):
                decision = envelope.decode(message.data)
                assert isinstance(decision, Decision)
                verdicts = [item for item in decision.instructions if item["instruction"] == "judged"]
                assert all(item["verdict"] != "promote" for item in verdicts)
                answered |= {item["version"] for item in verdicts}
                if len(answered) == len(self.drafts):
                    return

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not condition():  # noqa: ASYNC110  # another process's doing
                await asyncio.sleep(0.1)

    # The played members

    async def _follow(self) -> None:
        async for message in self.bus.tail(subjects.control_server(MODEL, "gpu-2"), since="last"):
            d = envelope.decode(message.data)
            assert isinstance(d, DesiredServer)
            self.node.desired = SetServer(
                d.node, d.generation, d.draft_version, d.draft_digest, d.steps_table, d.collect, d.sample_rate,
                "", d.reason, {},
            )  # fmt: skip

    async def _serve(self) -> None:
        while True:
            self.node.engine = "down" if self.trouble else "ready"
            seen = self.node.run(time.time(), 1.0)
            assert seen is not None
            await self._send(self._report(seen))
            await asyncio.sleep(1.0)

    def _report(self, seen: ServerReported) -> NodeReport:
        version = seen.running_version
        asked = self.node.desired
        return NodeReport(
            node="gpu-2", at=seen.at, sequence=seen.sequence, engine=seen.engine, running_version=version,
            running_digest=self.drafts[version - 1].content_digest if version else "",
            applied_generation=0 if asked is None else asked.generation, num_running=4, interval_s=1.0,
            steps=tuple(
                StepStats(s.batch_size, s.num_steps, s.num_verifies, s.num_tokens, s.accepted_at, s.step_s,
                          s.target_s, s.median_step_s)
                for s in seen.steps
            ),
            collecting=False, rows_written=1000 * seen.sequence, rows_dropped=3, rows_published=1000 * seen.sequence,
            bytes_published=50_000 * seen.sequence, requests_opted_out=0, num_swaps=1 if version else 0,
            engine_starts=1, problems=(self.trouble,) if self.trouble else (),
        )  # fmt: skip

    async def _train(self) -> None:
        """Round after round, 20 steps a second: the loss falls as it does."""
        for turn in range(1_000_000):
            step = 20 * turn % ROUND_STEPS
            report = TrainerReport(
                trainer="t1",
                at=time.time(),
                sequence=turn + 1,
                state="training",
                serving_version=self.node.version,
                applied_generation=1,
                num_requests=180 + turn,
                num_tokens=9000 + 40 * turn,
                num_heldout=18,
                new_tokens=40 * turn,
                store_bytes=12_000_000 + 50_000 * turn,
                round=4 + 20 * turn // ROUND_STEPS,
                step=step,
                num_steps_total=ROUND_STEPS,
                loss=1.2 + 2.4 * 0.99**step,
                shadow=(ShadowScore("chat", 9, 900, 2070.0), ShadowScore("code", 9, 900, 2430.0)),
            )
            await self._send(report)
            await asyncio.sleep(1.0)

    async def _send(self, record: Record) -> None:
        with contextlib.suppress(BusError):  # the broker may be away; a newer one follows
            await self.bus.publish(
                subjects.subject_of(MODEL, record), envelope.encode(record),
                message_id=subjects.message_id(MODEL, record), timeout_s=2.0,
            )  # fmt: skip

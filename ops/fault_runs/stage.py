"""The whole system as separate processes on private ports: nats-server, SGLang, the roles, clients.

Roles are started as an operator would. One that ends by itself, since the broker did not answer in time, say, is
started again as systemd would; one that a fault kills is started again by whoever inflicts the fault. Each role talks
to the broker through a relay of its own. Broker store and trainer files lie on small file systems of their own where
we may mount some.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
from demo_data.model import fetch
from demo_data.packages import cache_dir
from demo_run.ports import free_port
from demo_run.processes import Child, Children
from demo_run.stack import AUX_LAYERS, DRAFT_VOCAB_SIZE, MODEL, SERVER_ARGUMENTS, engine_pid, role_config, to_toml
from demo_run.waiting import StartError

from fault_runs.metrics_text import metrics_of
from fault_runs.relay import Relay
from tests import trainer_samples
from tests.nats_fixture import NatsServer
from tests.system import untrained
from tide_daemon.bus.connection import ConnectSettings
from tide_daemon.bus.jetstream import JetStreamBus
from tide_daemon.bus.topology import MIB, Topology, TopologyLimits, build_topology
from tide_daemon.engine.sglang.target import target_spec
from tide_daemon.wire.records import TargetSpec

ROLES = ("server", "trainer", "controller")
START_LIMIT_S = 600.0
RESTART_S = 2.0
"""As RestartSec= of systemd/tide-daemon@.service."""
STORE_BYTES, TRAINER_BYTES = 768 * MIB, 2048 * MIB
LIMITS = TopologyLimits(
    hidden_max_bytes=64 * MIB, draft_max_bytes=256 * MIB, target_max_bytes=256 * MIB, journal_max_bytes=64 * MIB
)
# So that equal prompts have equal answers whatever runs beside them, see the README on losslessness.
ENGINE_ARGUMENTS = [*SERVER_ARGUMENTS, "--dtype", "float32"]
TINY_VOCAB = 96
PASSWORD = "private-to-this-run"

CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    "server": {"server": {"restart_backoff_max_s": 5.0}},
    "trainer": {
        "trainer": {
            "shadow_interval_s": 0,
            "checkpoint_interval_s": 2.0,
            "round_min_tokens": 400,
            # Trainers purge old drafts that nobody needs; here every draft that was ever published must be there.
            "keep_versions": 1000,
        }
    },
    "controller": {
        # Rounds are asked for where a row is about them, see `train`.
        "controller": {
            "train_first_tokens": 1 << 30,
            "train_min_tokens": 1 << 30,
            "train_shift_tokens": 1 << 30,
            "watch_s": 5.0,
            "idle_sample_rate": 1.0,
            # A draft of the pool is judged anew, which the ledger would take for a verdict given twice.
            "pool_size": 0,
            "lost_after_s": 8.0,
        }
    },
}


class Stage:
    """Start it, inflict faults, stop it.

    Args:
        folder: takes everything that is written; a short path, for sockets lie in it.
        engine: "sglang" or "modelled".
    """

    def __init__(self, folder: Path, engine: str) -> None:
        self.folder = folder
        self.engine = engine
        self.openai_port = free_port()
        self.nats = NatsServer(folder / "nats", extra_config=users_config({}))
        self.nats.port, self.nats.monitor_port = free_port(), free_port()  # so that it can be reloaded
        self.relays: dict[str, Relay] = {}
        self.mounts: list[Path] = []
        self.children = Children(folder / "log")
        self.roles: dict[str, Child] = {}
        self.num_restarts = 0
        self._wanted: set[str] = set()
        self._keeper: asyncio.Task[None] | None = None
        self.ports: dict[str, int] = {}
        self.changes: dict[str, dict[str, dict[str, Any]]] = json.loads(json.dumps(CHANGES))
        self.environments: dict[str, dict[str, str]] = {}
        self.model_dir = Path()
        self.spec: TargetSpec
        self.topology: Topology = build_topology(LIMITS)
        self.http: aiohttp.ClientSession

    @property
    def openai_url(self) -> str:
        """Where clients go."""
        return f"http://127.0.0.1:{self.openai_port}"

    async def start(self) -> None:
        """Start everything.

        Raises:
            StartError: something did not get ready in time.
        """
        self.http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5))
        self._mount(self.folder / "trainer", TRAINER_BYTES)
        if self.engine == "sglang":
            self.model_dir = await asyncio.to_thread(fetch, cache_dir(), lambda text: print(text, file=sys.stderr))
        else:
            self.model_dir = trainer_samples.write_target(self.folder / "target")
            (self.model_dir / "tokenizer.json").write_text("{}")
        layers = tuple(AUX_LAYERS) if self.engine == "sglang" else trainer_samples.LAYERS
        self.spec = target_spec(self.model_dir, MODEL, layers)
        await self.start_broker()
        for role in ROLES:
            await self.start_role(role)
        self._keeper = asyncio.create_task(self._keep_running())
        await self.until("every role is ready", self.all_ready, START_LIMIT_S)

    async def serve_draft(self) -> None:
        """Publish a draft and wait until its rollout is over, which takes requests.

        Raises:
            StartError: it is not served in time.
        """
        async with self.bus() as bus:
            await untrained.publish(bus, self.spec, self.model_dir, self.folder / "untrained", self.draft_vocab)
        await self.until("the draft is served", self.is_converged, 180.0)

    @property
    def draft_vocab(self) -> int:
        """Rows of the draft's head."""
        return DRAFT_VOCAB_SIZE if self.engine == "sglang" else TINY_VOCAB

    async def stop(self) -> None:
        """End every process, whatever state it is in, and unmount."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        for child in self.roles.values():
            with contextlib.suppress(ProcessLookupError):
                child.popen.send_signal(signal.SIGCONT)
        pid = self.engine_pid()
        await asyncio.to_thread(self.children.stop, 10.0)
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        for relay in self.relays.values():
            await relay.close()
        await self.stop_broker()
        await self.http.close()
        for path in self.mounts:
            await asyncio.to_thread(subprocess.run, ["umount", "--lazy", str(path)], check=False)

    # The broker; another kind: deployed.py

    async def start_broker(self) -> None:
        """Start it, with its store on a small file system. The first daemon makes the streams."""
        self._mount(self.folder / "nats" / "store", STORE_BYTES)
        await asyncio.to_thread(self.nats.start)

    async def stop_broker(self) -> None:
        """End it, whatever state it is in."""
        await asyncio.to_thread(self.nats.stop)

    async def bus_section(self, role: str, name: str) -> dict[str, Any]:
        """What the file of a daemon says of the broker: to be reached through a relay of its own."""
        if name not in self.relays:
            self.relays[name] = Relay(lambda: self.nats.port)
            await self.relays[name].start()
        return {"url": f"nats://{role}:{PASSWORD}@127.0.0.1:{self.relays[name].port}"}

    def connect_settings(self, name: str) -> ConnectSettings:
        """How we connect ourselves, straight to the broker and with every right."""
        url = f"nats://observer:{PASSWORD}@127.0.0.1:{self.nats.port}"
        return ConnectSettings((url,), f"fault-runs {name}", first_connect_s=5.0, reconnect_wait_s=0.1)

    def monitor_ports(self) -> dict[str, int]:
        """Where brokers can be asked about themselves, by their names."""
        return {"": self.nats.monitor_port}

    # Processes

    async def start_role(self, role: str, name: str = "") -> Child:
        """Start a role's daemon, under another name for a second one; returns at once."""
        name = name or role
        self.ports.setdefault(name, free_port())
        path = self.folder / f"{name}.toml"
        path.write_text(to_toml(self._config(role, name, await self.bus_section(role, name))))
        command = [str(Path(sys.executable).with_name("tide-daemon")), "--role", role, "--config", str(path)]
        quiet = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
        self.roles[name] = self.children.start(name, command, quiet | self.environments.get(name, {}))
        self._wanted.add(name)
        return self.roles[name]

    async def _keep_running(self) -> None:
        """What systemd does with Restart=always."""
        while True:
            for name in sorted(self._wanted):
                if not self.roles[name].running:
                    self.num_restarts += 1
                    await self.start_role(name.partition("-")[0], name)
            await asyncio.sleep(RESTART_S)

    def _config(self, role: str, name: str, bus: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        config: dict[str, dict[str, Any]] = role_config(
            role, self.folder, self.model_dir, bus["url"], self.openai_port, self.ports[name], ENGINE_ARGUMENTS
        )
        config["node"] |= {"name": f"demo-{name}", "state_dir": str(self.folder / name)}
        config["bus"] |= {**bus, **limits_section()}
        if self.engine == "modelled":
            if role == "server":
                config["server"] = {"model_path": str(self.model_dir), "mode": "modelled"}
                config["draft"] = {"aux_layer_ids": list(self.spec.aux_layer_ids), "max_steps": 5}
            elif role == "trainer":
                config["draft"] = {"vocab_size": TINY_VOCAB}
        for source in (self.changes.get(role, {}), self.changes.get(name, {}) if name != role else {}):
            for section, values in source.items():
                config.setdefault(section, {}).update(values)
        return config

    def kill(self, name: str) -> None:
        """kill -9 of a daemon, and of nothing that it started."""
        self._wanted.discard(name)
        child = self.roles[name]
        child.popen.kill()
        child.popen.wait()

    async def end(self, name: str) -> None:
        """Have a daemon end in order."""
        self._wanted.discard(name)
        child = self.roles[name]
        child.popen.send_signal(signal.SIGCONT)
        child.popen.terminate()
        try:
            await asyncio.to_thread(child.popen.wait, 30)
        except subprocess.TimeoutExpired:
            self.kill(name)

    def freeze(self, name: str) -> None:
        """SIGSTOP of a daemon."""
        self.roles[name].popen.send_signal(signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """SIGCONT."""
        self.roles[name].popen.send_signal(signal.SIGCONT)

    def engine_pid(self) -> int:
        """SGLang's first process, which leads its group; 0 if there is none."""
        return engine_pid(self.folder)

    def _mount(self, path: Path, num_bytes: int) -> None:
        path.mkdir(parents=True, exist_ok=True)
        size = f"size={num_bytes}"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(path)], check=False, capture_output=True
        )
        if done.returncode == 0:
            self.mounts.append(path)

    def fill(self, path: Path) -> Path:
        """Use up all that a small file system has left; returns the file to delete."""
        assert path in self.mounts, "never fill up a disk that others use"
        ballast = path / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(min(MIB, max(4096, shutil.disk_usage(path).free))))
        return ballast

    async def train(self, wanted: bool) -> None:
        """Have the controller ask for rounds all the time, or not at all."""
        tokens = 400 if wanted else 1 << 30
        await self.control(train_min_tokens=tokens, train_shift_tokens=tokens)

    async def control(self, **settings: object) -> None:
        """Give the controller other settings; it is started anew if that changes any."""
        held = self.changes["controller"]["controller"]
        if held == held | settings:
            return
        held |= settings
        await self.end("controller")
        await self.start_role("controller")
        await self.until("the controller leads", self._leads, 90.0)

    async def _leads(self) -> bool:
        return bool((await self.role("controller")).get("leading"))

    # What can be seen from outside

    async def status(self, name: str) -> dict[str, Any]:
        """/status of a daemon, {} while it does not answer."""
        try:
            async with self.http.get(f"http://127.0.0.1:{self.ports[name]}/status") as response:
                answer: dict[str, Any] = await response.json()
                return answer
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return {}

    async def metrics(self, name: str) -> Mapping[str, float]:
        """/metrics of a daemon, {} while it does not answer; see metrics_text.py."""
        try:
            async with self.http.get(f"http://127.0.0.1:{self.ports[name]}/metrics") as response:
                return metrics_of(await response.text())
        except (aiohttp.ClientError, TimeoutError, OSError):
            return {}

    async def role(self, name: str) -> dict[str, Any]:
        """What a role's page shows, {} while it does not answer."""
        status = await self.status(name)
        views = list(status.get("roles", {}).values())
        shown: dict[str, Any] = views[0]["snapshot"] if views else {}
        return shown

    async def all_ready(self) -> bool:
        """Every role can work and has the broker."""
        for role in ROLES:
            status = await self.status(role)
            if not status.get("ready") or not status["bus"]["connected"]:
                return False
        return True

    async def is_converged(self) -> bool:
        """Somebody leads and sees the fleet, and the engine runs the draft that the fleet serves."""
        leading = [
            shown
            for name in self.roles
            if name.startswith("controller")
            if (shown := await self.role(name)).get("leading")
        ]
        server = await self.role("server")
        if len(leading) != 1 or not server:
            return False
        fleet = leading[0]
        return bool(
            fleet["num_nodes"] == 1
            and fleet["num_trainers"] >= 1
            and fleet["fleet"]["stage"] == "steady"
            and fleet["serving_version"] > 0
            and server["engine"] == "ready"
            and server["draft_version"] == fleet["serving_version"] == server["desired_draft_version"]
        )

    async def consumer(self) -> dict[str, Any]:
        """State of the trainers' consumer by the monitoring of the broker that leads it; {} while none answers."""
        for name, port in self.monitor_ports().items():
            url = f"http://127.0.0.1:{port}/jsz?streams=1&consumers=1&accounts=1"
            try:
                async with self.http.get(url) as response:
                    accounts = (await response.json())["account_details"]
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError):
                continue
            for stream in (each for account in accounts for each in account.get("stream_detail", [])):
                for consumer in stream.get("consumer_detail") or []:
                    leads = not name or consumer.get("cluster", {}).get("leader", name) == name
                    if leads and (stream["name"], consumer["name"]) == ("TIDE_HIDDEN", "trainers"):
                        found: dict[str, Any] = consumer
                        return found
        return {}

    @contextlib.asynccontextmanager
    async def bus(self) -> Any:
        """A connection of our own, straight to the broker, with every right."""
        bus = await JetStreamBus.connect(self.connect_settings("work"), self.topology)
        try:
            yield bus
        finally:
            await bus.close()

    async def until(self, what: str, condition: Callable[[], Any], within_s: float) -> float:
        """Wait for a condition; returns the seconds that it took. A KeyError counts as not yet.

        Raises:
            StartError: it did not come true.
        """
        started = time.monotonic()
        while True:
            with contextlib.suppress(KeyError):
                if await condition():
                    return time.monotonic() - started
            if time.monotonic() - started > within_s:
                raise StartError(f"{what}: not within {within_s:g} s")
            await asyncio.sleep(0.25)


def limits_section() -> dict[str, int]:
    """The part of a [bus] section that says how much streams may hold."""
    names = ("hidden_max_bytes", "draft_max_bytes", "target_max_bytes", "journal_max_bytes")
    return {name: getattr(LIMITS, name) for name in names}


def users_config(denied: Mapping[str, str]) -> str:
    """nats-server's users; `denied` names a subject that a user may not publish to."""
    users = []
    for user in (*ROLES, "observer"):
        rights = f', permissions: {{ publish: {{ deny: "{denied[user]}" }} }}' if user in denied else ""
        users.append(f'    {{ user: {user}, password: "{PASSWORD}"{rights} }}')
    return "authorization {\n  users = [\n" + "\n".join(users) + "\n  ]\n}\n"

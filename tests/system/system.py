"""The real system as processes, started as an operator would, and the faults that tests inflict on it.

Roles are started again by the test as systemd would do; everything else has to recover by itself.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from demo_data.model import fetch
from demo_data.packages import cache_dir
from demo_run.ports import free_port
from demo_run.processes import Child, Children
from demo_run.stack import AUX_LAYERS, MODEL, SERVER_ARGUMENTS, engine_pid, role_config, to_toml

from tests.nats_fixture import NatsServer
from tests.system import untrained
from tide_daemon.bus.connection import ConnectSettings
from tide_daemon.bus.jetstream import JetStreamBus
from tide_daemon.bus.topology import TopologyLimits, build_topology
from tide_daemon.engine.sglang.target import target_spec

ROLES = ("server", "trainer", "controller")
START_LIMIT_S = 300.0
T = TypeVar("T")

CHANGES: dict[str, dict[str, Any]] = {
    "trainer": {"shadow_interval_s": 0},
    # Training is not what is tested here, see tests/integration/loop; it would take the core from the rest.
    # An engine that goes down in the watch period costs the draft; what is tested here comes after it.
    "controller": {"train_first_tokens": 1 << 30, "train_min_tokens": 1 << 30, "watch_s": 5.0},
}


class System:
    """A private broker, SGLang and the three roles. `folder` takes everything that they write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.openai_url = f"http://127.0.0.1:{free_port()}"
        self.nats = NatsServer(folder / "nats")
        self.nats.port = free_port()
        self.first_answer = ""
        self._children = Children(folder / "log")
        self._roles: dict[str, Child] = {}
        self._ports = {role: free_port() for role in ROLES}
        self._model_dir = Path()

    def start(self) -> None:
        """Start everything, the broker last but for its clients: the server must serve without it."""
        self._model_dir = fetch(cache_dir())
        self.start_role("server")
        self.until("SGLang serves without a broker", lambda: self.role("server")["engine"] == "ready", START_LIMIT_S)
        assert not self.status("server")["bus"]["connected"]
        self.first_answer = self.complete("Say hello.")
        self.nats.start()
        self.start_role("trainer")
        self.start_role("controller")
        self.until("every role is ready", lambda: all(self.is_ready(role) for role in ROLES), START_LIMIT_S)
        self.on_bus(self._publish_draft)
        self.until("the draft runs", lambda: self.role("server")["draft_version"] == 1, 60.0)
        # A canary that was busy a moment ago is given time to show chains: with a slow first answer up to its deadline.
        self.until("its rollout is over", lambda: self.role("controller")["fleet"]["stage"] == "steady", 180.0)

    async def _publish_draft(self, bus: JetStreamBus) -> None:
        spec = target_spec(self._model_dir, MODEL, tuple(AUX_LAYERS))
        await untrained.publish(bus, spec, self._model_dir, self.folder / "untrained")

    def stop(self) -> None:
        """End every process, whatever state the tests left it in."""
        pid = self.engine_pid()
        self._children.stop()
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        self.nats.stop()

    def start_role(self, role: str) -> None:
        """Start a role's daemon; returns at once."""
        path = self.folder / f"{role}.toml"
        if not path.exists():
            port = int(self.openai_url.rsplit(":", 1)[1])
            config = role_config(
                role, self.folder, self._model_dir, self.nats.url, port, self._ports[role], SERVER_ARGUMENTS
            )
            for key, value in CHANGES.get(role, {}).items():
                config[role][key] = value
            path.write_text(to_toml(config))
        command = [str(Path(sys.executable).with_name("tide-daemon")), "--role", role, "--config", str(path)]
        quiet = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
        self._roles[role] = self._children.start(role, command, quiet)

    def kill_role(self, role: str) -> None:
        """kill -9 of the role's daemon, and of nothing that it started."""
        child = self._roles[role]
        child.popen.kill()
        child.popen.wait()

    # What can be seen from outside

    def status(self, role: str) -> dict[str, Any]:
        """/status of a role, {} while it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._ports[role]}/status", timeout=10) as response:
                answer: dict[str, Any] = json.loads(response.read())
                return answer
        except (OSError, ValueError):
            return {}

    def role(self, role: str) -> dict[str, Any]:
        """What a role's page shows; raises KeyError while the daemon does not answer or has not started it."""
        shown: dict[str, Any] = self.status(role)["roles"][role]["snapshot"]
        return shown

    def is_ready(self, role: str) -> bool:
        """Whether the role can work and the broker is connected."""
        status = self.status(role)
        return bool(status["ready"]) and bool(status["bus"]["connected"])

    def engine_pid(self) -> int:
        """SGLang's first process, 0 if none was started."""
        return engine_pid(self.folder)

    def complete(self, text: str, num_tokens: int = 8) -> str:
        """A short answer to a chat message; raises OSError when SGLang does not answer."""
        body = {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": num_tokens}
        request = urllib.request.Request(
            f"{self.openai_url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            return str(json.loads(response.read())["choices"][0]["message"]["content"])

    def until(self, what: str, condition: Callable[[], bool], within_s: float) -> float:
        """Wait for a condition; returns the seconds it took. A KeyError counts as not yet."""
        started = time.monotonic()
        while True:
            with contextlib.suppress(KeyError):
                if condition():
                    return time.monotonic() - started
            if time.monotonic() - started > within_s:
                raise AssertionError(f"{what}: not within {within_s:g} s\n{self._explain()}")
            time.sleep(0.2)

    def _explain(self) -> str:
        logs = {role: child.last_lines(6) for role, child in self._roles.items()}
        return json.dumps({"status": {role: self.status(role) for role in ROLES}, "logs": logs}, indent=1)[:20_000]

    def on_bus(self, work: Callable[[JetStreamBus], Awaitable[T]]) -> T:
        """Do something with a connection of our own."""

        async def run() -> T:
            bus = await JetStreamBus.connect(
                ConnectSettings((self.nats.url,), "test"), build_topology(TopologyLimits())
            )
            try:
                return await work(bus)
            finally:
                await bus.close()

        return asyncio.run(run())

    def messages(self, *subjects: str) -> list[tuple[str, bytes]]:
        """(subject, bytes) of what is stored on the given subjects until now."""

        async def read(bus: JetStreamBus) -> list[tuple[str, bytes]]:
            found = []
            for subject in subjects:
                now = time.time()
                with contextlib.suppress(TimeoutError):
                    async with contextlib.aclosing(bus.tail(subject, since="all")) as stored:
                        while (message := await asyncio.wait_for(anext(stored), 1.0)).stored_at < now:
                            found.append((message.subject, message.data))
            return found

        return self.on_bus(read)

"""The system with brokers from ops/nats/ as an operator would run them: TLS, a key for every user, one or three."""

import asyncio
import contextlib
import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

from demo_run.stack import MODEL, to_toml
from demo_run.waiting import StartError

from fault_runs.stage import LIMITS, PASSWORD, ROLES, Stage, limits_section
from tests.nats_deployment import Deployment
from tide_daemon import cli
from tide_daemon.bus.connection import ConnectSettings
from tide_daemon.bus.topology import build_topology
from tide_daemon.bus.users import DOMAIN, STREAMS_ACCOUNT
from tide_daemon.errors import BusError

KINDS = {"tls": ("single.conf", ("nats-a",)), "cluster": ("cluster.conf", ("nats-a", "nats-b", "nats-c"))}
"""File of ops/nats/ and the brokers that run it, by what a row of the table needs."""


class Brokers(Deployment):
    """Those of one kind, with one more user: the observer, inside the account that holds the streams."""

    def __init__(self, folder: Path, kind: str) -> None:
        file, names = KINDS[kind]
        users = [*(f"{role}:demo-{role}" for role in ROLES), "admin:demo-admin"]
        super().__init__(folder, file, names, MODEL, users)

    def _prepare(self, etc: Path) -> None:
        super()._prepare(etc)
        path, account = etc / "users.conf", f"  {STREAMS_ACCOUNT} {{\n"
        text = path.read_text()
        assert account in text
        observer = f'    users: [ {{ user: observer, password: "{PASSWORD}" }} ]\n'
        path.write_text(text.replace(account, account + observer, 1))


class DeployedStage(Stage):
    """See Stage. Roles talk to the brokers themselves, not through relays.

    Args:
        kind: of KINDS.
    """

    def __init__(self, folder: Path, engine: str, kind: str) -> None:
        super().__init__(folder, engine)
        self.brokers = Brokers(folder / "nats", kind)
        self.topology = build_topology(replace(LIMITS, replicas=len(self.brokers.names)))
        self._led = [f"STREAM.{stream.name}" for stream in self.topology.streams]
        self._led += [f"CONSUMER.{consumer.stream}.{consumer.name}" for consumer in self.topology.consumers]

    async def start_broker(self) -> None:
        """Start all of them and make the streams as an admin would."""
        await asyncio.to_thread(self.brokers.start)
        file = self.folder / "admin.toml"
        file.write_text(to_toml({"node": {"name": "demo-admin", "model": MODEL}, "bus": self._bus("admin", "admin")}))
        if await asyncio.to_thread(cli.main, ["admin", "init", "--config", str(file)]):
            raise StartError("`tide-daemon admin init` failed")

    async def stop_broker(self) -> None:
        """End all of them."""
        await asyncio.to_thread(self.brokers.stop)

    async def bus_section(self, role: str, name: str) -> dict[str, Any]:
        """What ops/nats/README.md tells operators to write."""
        return self._bus(role, name) | {"manage_streams": False}

    def _bus(self, role: str, name: str) -> dict[str, Any]:
        return {
            "url": self.brokers.urls,
            "tls_ca_file": str(self.brokers.ca),
            "nkey_file": str(self.brokers.key(f"{role}:demo-{name}")),
            "domain": DOMAIN,
            "replicas": len(self.brokers.names),
            **limits_section(),
        }

    def connect_settings(self, name: str) -> ConnectSettings:
        """As the observer."""
        urls = tuple(f"tls://observer:{PASSWORD}@localhost:{port}" for port in self.brokers.ports.values())
        return ConnectSettings(
            urls,
            f"fault-runs {name}",
            first_connect_s=5.0,
            reconnect_wait_s=0.1,
            tls=ssl.create_default_context(cafile=self.brokers.ca),
        )

    def monitor_ports(self) -> dict[str, int]:
        """See Stage."""
        return self.brokers.monitor_ports

    async def broker_of(self, name: str) -> str:
        """The broker that a daemon is connected to.

        Raises:
            StartError: none.
        """
        for broker, port in self.monitor_ports().items():
            async with self.http.get(f"http://127.0.0.1:{port}/connz") as response:
                connections = (await response.json())["connections"]
            if any(each.get("name") == f"tide-daemon demo-{name}" for each in connections):
                return broker
        raise StartError(f"{name} is connected to no broker")

    async def leaders(self) -> dict[str, str]:
        """Which broker leads each stream, and the trainers' consumer; "" for none, or where nobody answers."""
        found = dict.fromkeys(self._led, "")
        async with self.bus() as bus:
            for name in self._led:
                with contextlib.suppress(BusError):
                    answer = await bus.connection.api(name.replace(".", ".INFO.", 1))
                    found[name] = str(answer.get("cluster", {}).get("leader") or "")
        return found

    async def has_lead(self, broker: str) -> bool:
        """Have one broker lead all of them; whether it does by now."""
        others = [name for name, leader in (await self.leaders()).items() if leader != broker]
        async with self.bus() as bus:
            for name in others:
                with contextlib.suppress(BusError):
                    step_down = name.replace(".", ".LEADER.STEPDOWN.", 1)
                    await bus.connection.api(step_down, {"placement": {"preferred": broker}})
        return not others

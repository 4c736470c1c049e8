"""The files of ops/nats/ as they are, at work: folders and ports moved, nothing else. TLS and nkeys as for real."""

import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.nats_fixture import START_LIMIT_S, nats_server_binary
from tide_daemon import cli
from tide_daemon.bus.connection import ConnectSettings
from tide_daemon.bus.permissions import inbox_prefix
from tide_daemon.bus.users import DOMAIN

OPS_NATS = Path(__file__).parent.parent / "ops/nats"
MODEL = "tiny"
USERS = ("server:s1", "trainer:t1", "controller:c1", "operator:o1", "admin:a1")


def free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def make_certificate(folder: Path, days: int = 825) -> None:
    """A server certificate for this machine, signed by the authority in the folder; -1 day: it has expired."""
    command = [str(OPS_NATS / "certificates"), str(folder), "localhost", "127.0.0.1"]
    subprocess.run(command, check=True, env={**os.environ, "TIDE_CERTIFICATE_DAYS": str(days)})


class Deployment:
    """Brokers from one of the files, and the users' keys.

    Args:
        names: one broker each; several form a cluster.
        users: ROLE:NAME of each, of `model`.
    """

    def __init__(
        self,
        folder: Path,
        file: str = "single.conf",
        names: Sequence[str] = ("nats-a",),
        model: str = MODEL,
        users: Sequence[str] = USERS,
    ) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("openssl is not installed, which makes the test's certificates")
        self.folder = folder
        self.names = names
        self.model = model
        self.users = users
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        self._routes = dict(zip(names, free_ports(len(names)), strict=True))
        self.leaf_port = free_ports(1)[0]
        self.monitor_ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._prepare(folder / "etc")
        for name in names:
            self._write(name, file)

    def _prepare(self, etc: Path) -> None:
        """Keys, users and certificates."""
        assert cli.main(["admin", "users", "--folder", str(etc), "--model", self.model, *self.users]) == 0
        make_certificate(etc / "tls")

    def _write(self, name: str, file: str) -> None:
        etc, own = self.folder / "etc", self.folder / name
        own.mkdir()
        for path in OPS_NATS.glob("*.conf"):
            text = path.read_text().replace("/etc/nats", str(etc)).replace("/var/lib/nats", str(own / "store"))
            text = text.replace("0.0.0.0:4222", f"127.0.0.1:{self.ports[name]}")
            text = text.replace("127.0.0.1:8222", f"127.0.0.1:{self.monitor_ports[name]}")
            text = text.replace("0.0.0.0:7422", f"127.0.0.1:{self.leaf_port}")
            text = text.replace("0.0.0.0:6222", f"127.0.0.1:{self._routes[name]}")
            for other, port in self._routes.items():
                text = text.replace(f"nats-route://{other}:6222", f"nats-route://127.0.0.1:{port}")
            (own / path.name).write_text(text)
        shutil.copy2(etc / "users.conf", own / "users.conf")
        (own / "main").write_text(file)

    @property
    def urls(self) -> str:
        return ",".join(f"tls://localhost:{port}" for port in self.ports.values())

    @property
    def ca(self) -> Path:
        return self.folder / "etc/tls/ca.pem"

    def key(self, user: str) -> Path:
        role, _, name = user.partition(":")
        return self.folder / f"etc/{role}.{name}.nk"

    def settings(self, user: str, **changes: object) -> ConnectSettings:
        role, _, name = user.partition(":")
        values: dict[str, object] = {
            "inbox_prefix": inbox_prefix((role,), name),
            "nkey_seed_file": str(self.key(user)),
            "domain": DOMAIN,
            "reconnect_wait_s": 0.1,
            "first_connect_s": 5.0,
            "tls": ssl.create_default_context(cafile=self.ca),
        }
        return ConnectSettings(tuple(self.urls.split(",")), f"test {user}", **(values | changes))  # type: ignore[arg-type]

    def config_file(self, user: str, extra: str = "") -> Path:
        """A TOML file of the same."""
        role, _, name = user.partition(":")
        path = self.folder / f"{role}.{name}.toml"
        path.write_text(
            f'[bus]\nurl = "{self.urls}"\ndomain = "{DOMAIN}"\n'
            f'nkey_file = "{self.key(user)}"\ntls_ca_file = "{self.ca}"\n'
            f'[node]\nname = "{name}"\nmodel = "{self.model}"\n{extra}'
        )
        return path

    def start(self) -> None:
        for name in self.names:
            self.start_one(name)
        give_up_at = time.monotonic() + START_LIMIT_S
        while not all(self._is_healthy(name) for name in self.names):
            assert time.monotonic() < give_up_at, "\n".join(self.log(name)[-2000:] for name in self.names)
            time.sleep(0.05)

    def start_one(self, name: str) -> None:
        own = self.folder / name
        command = [nats_server_binary(), "-c", str(own / (own / "main").read_text())]
        with (own / "log").open("ab") as log:
            environment = {"TIDE_NATS_NAME": name}
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def log(self, name: str) -> str:
        return (self.folder / name / "log").read_text(errors="replace")

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes.pop(name).wait()

    def stop(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes = {}

    def _is_healthy(self, name: str) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.monitor_ports[name]}/healthz", timeout=1) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def monitor(self, name: str, page: str) -> dict[str, object]:
        """What the broker's own monitoring says, `leafz` for one."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.monitor_ports[name]}/{page}", timeout=5) as answer:
            return dict(json.load(answer))


class FarSite(Deployment):
    """A broker from far.conf with some of the hub's users, linked to it."""

    def __init__(self, folder: Path, hub: Deployment, users: Sequence[str]) -> None:
        self._hub = hub
        super().__init__(folder, "far.conf", ("far",), users=users)

    def _prepare(self, etc: Path) -> None:
        etc.mkdir(parents=True)
        for user in self.users:
            shutil.copy(self._hub.key(user), etc)
        shutil.copytree(self._hub.folder / "etc/tls", etc / "tls")
        url = f"tls://localhost:{self._hub.leaf_port}"
        command = ["admin", "users", "--folder", str(etc), "--model", MODEL, "--hub", url]
        assert cli.main([*command, *self.users]) == 0

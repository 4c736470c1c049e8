"""The half of systemd that a service of Type=notify meets: a notify socket, the watchdog, abort and restart."""

import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path


class ServiceManager:
    """Starts a command with $NOTIFY_SOCKET and does to it what systemd would.

    Args:
        folder: where the socket goes; `abstract` puts it into the abstract namespace instead.
        watchdog_s: after READY the service is aborted when it sends no WATCHDOG=1 for so long.
    """

    def __init__(self, folder: Path, *, watchdog_s: float = 0.0, abstract: bool = False) -> None:
        self.address = f"@{folder}/notify" if abstract else str(folder / "notify")
        self.watchdog_s = watchdog_s
        self.messages: list[dict[str, str]] = []
        self.process: subprocess.Popen[str] | None = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{self.address[1:]}" if abstract else self.address)

    def start(self, command: Sequence[str]) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TIDE_")}
        environment["NOTIFY_SOCKET"] = self.address
        if self.watchdog_s:
            environment["WATCHDOG_USEC"] = str(int(self.watchdog_s * 1e6))
        self.messages = []
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )

    def receive(self, timeout_s: float) -> dict[str, str] | None:
        """The next message, None if none comes in time."""
        if not select.select([self._socket], [], [], timeout_s)[0]:
            return None
        lines = self._socket.recv(65536).decode().splitlines()
        message = dict(line.split("=", 1) for line in lines)
        self.messages.append(message)
        return message

    def wait_for(self, field: str, timeout_s: float = 30.0) -> dict[str, str]:
        give_up_at = time.monotonic() + timeout_s
        while (left_s := give_up_at - time.monotonic()) > 0:
            message = self.receive(left_s)
            if message is not None and field in message:
                return message
        raise AssertionError(f"no {field} within {timeout_s} s: {self.messages}")

    def watch(self, limit_s: float) -> float:
        """Play the watchdog until it bites, which it does with SIGABRT; returns how long the silence was."""
        assert self.process is not None
        give_up_at = time.monotonic() + limit_s
        fed_at = time.monotonic()
        while time.monotonic() < give_up_at:
            message = self.receive(max(0.0, fed_at + self.watchdog_s - time.monotonic()))
            if message is not None and "WATCHDOG" in message:
                fed_at = time.monotonic()
            if (silence := time.monotonic() - fed_at) >= self.watchdog_s:
                self.process.send_signal(signal.SIGABRT)
                return silence
        raise AssertionError(f"fed for {limit_s} s")

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Signal it and wait; (exit code, what it wrote)."""
        assert self.process is not None
        self.process.send_signal(number)
        output, _ = self.process.communicate(timeout=30)
        return self.process.returncode, output

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
        self._socket.close()

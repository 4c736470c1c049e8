"""A real daemon process against a real nats-server: starts, answers, drains, and ends with the documented code."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nats_fixture import NatsServer
from tide_daemon.exit_codes import ExitCode


class DaemonProcess:
    """`tide-daemon` as a process; its log lines are read as JSON."""

    def __init__(self, *words: str) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TIDE_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tide_daemon", *words], stdout=subprocess.PIPE, text=True, env=environment
        )

    def wait_for(self, event: str) -> dict[str, object]:
        assert self.process.stdout is not None
        seen = []
        for line in self.process.stdout:
            record = json.loads(line)
            if record["event"] == event:
                return record
            seen.append(line)
        raise AssertionError(f"no {event} before the end: {''.join(seen)}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        self.process.communicate(timeout=30)
        return self.process.returncode


@pytest.fixture
def daemons() -> Iterator[list[DaemonProcess]]:
    started: list[DaemonProcess] = []
    yield started
    for daemon in started:
        if daemon.process.poll() is None:
            daemon.process.kill()
        daemon.process.communicate()


def get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def role_words(role: str, url: str, state_dir: Path) -> list[str]:
    settings = {
        "bus.url": url,
        "bus.connect_timeout_s": 5,
        "node.state_dir": state_dir,
        "status.port": 0,
        "node.name": "t1",
    }
    return ["--role", role, *(word for key, value in settings.items() for word in ("--set", f"{key}={value}"))]


def test_a_trainer_starts_answers_and_drains(
    nats_server: NatsServer, tmp_path: Path, daemons: list[DaemonProcess]
) -> None:
    """Every endpoint answers about a live daemon; SIGTERM ends it with 0; the next start takes the same files."""
    for _ in range(2):
        daemon = DaemonProcess(*role_words("trainer", nats_server.url, tmp_path / "state"))
        daemons.append(daemon)
        url = daemon.wait_for("status_endpoint_opened")["url"]
        daemon.wait_for("role_started")
        assert get(f"{url}healthz") == (200, b"alive\n")
        status = json.loads(get(f"{url}status")[1])
        assert status["daemon"]["node"] == "t1" and status["bus"]["connected"] is True
        assert status["roles"]["trainer"]["state"] == "running"
        assert b"tide_bus_connected 1.0" in get(f"{url}metrics")[1]
        assert daemon.stop() == ExitCode.OK


def test_a_lost_broker_shows_and_heals(nats_server: NatsServer, tmp_path: Path, daemons: list[DaemonProcess]) -> None:
    """The daemon stays alive while the broker is away, says so, and goes on when it is back."""
    daemon = DaemonProcess(*role_words("trainer", nats_server.url, tmp_path / "state"))
    daemons.append(daemon)
    url = daemon.wait_for("status_endpoint_opened")["url"]
    daemon.wait_for("role_started")

    def connected() -> bool:
        assert get(f"{url}healthz")[0] == 200
        return bool(json.loads(get(f"{url}status")[1])["bus"]["connected"])

    def wait_until(wanted: bool) -> None:
        end = time.monotonic() + 20
        while connected() is not wanted:
            assert time.monotonic() < end, "waited 20 s"
            time.sleep(0.1)

    wait_until(True)
    nats_server.kill()
    wait_until(False)
    assert json.loads(get(f"{url}readyz")[1])["dependencies"]["bus"] != "ok"
    nats_server.start()
    wait_until(True)
    assert daemon.stop() == ExitCode.OK


def test_no_broker_ends_with_its_code(tmp_path: Path, daemons: list[DaemonProcess]) -> None:
    """Nothing listens there: exit code 3 after the connect timeout, with the address in the log."""
    daemon = DaemonProcess(*role_words("trainer", "nats://127.0.0.1:9", tmp_path), "--set", "bus.connect_timeout_s=0.5")
    daemons.append(daemon)
    assert "nats://127.0.0.1:9" in str(daemon.wait_for("broker_unusable")["error"])
    assert daemon.process.wait(20) == ExitCode.BROKER


def test_two_daemons_on_one_state_directory(
    nats_server: NatsServer, tmp_path: Path, daemons: list[DaemonProcess]
) -> None:
    """The second is refused with code 4; after kill -9 of the first nothing stale is left."""
    words = role_words("trainer", nats_server.url, tmp_path / "state")
    first = DaemonProcess(*words)
    daemons.append(first)
    first.wait_for("role_started")
    second = DaemonProcess(*words)
    daemons.append(second)
    assert f"process {first.process.pid}" in str(second.wait_for("role_unusable")["error"])
    assert second.process.wait(20) == ExitCode.ROLE
    first.process.kill()
    first.process.wait()
    third = DaemonProcess(*words)
    daemons.append(third)
    third.wait_for("role_started")
    assert third.stop(signal.SIGINT) == ExitCode.OK


def test_a_closed_pipe_is_not_an_error() -> None:
    """`tide-daemon config | head -1` ends without a traceback."""
    command = f"{sys.executable} -m tide_daemon config --reference | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("# Every setting") and done.stderr == ""

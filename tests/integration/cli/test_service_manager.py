"""A daemon under a service manager, both real processes: ready, reload, drain, and a hang that the watchdog ends."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.cli.test_process import role_words
from tests.nats_fixture import NatsServer
from tests.service_manager import ServiceManager
from tide_daemon.exit_codes import ExitCode

HANGING = [sys.executable, str(Path(__file__).with_name("hanging_daemon.py"))]


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    manager = ServiceManager(tmp_path, watchdog_s=1.5)
    yield manager
    manager.close()


def daemon(role: str, url: str, folder: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "tide_daemon", *role_words(role, url, folder / "state"), *words]


@pytest.mark.parametrize("role", ["controller", "trainer"])
def test_ready_then_stopping(role: str, manager: ServiceManager, nats_server: NatsServer, tmp_path: Path) -> None:
    """READY after the role runs, the watchdog fed meanwhile, STOPPING before the end, exit code 0."""
    manager.start(daemon(role, nats_server.url, tmp_path))
    manager.wait_for("READY")
    manager.wait_for("WATCHDOG")
    code, output = manager.end()
    manager.wait_for("STOPPING")
    assert code == ExitCode.OK
    assert output.index("role_started") < output.index("daemon_ready") < output.index("drain_started")


def test_not_ready_while_the_broker_is_away(manager: ServiceManager, nats_server: NatsServer, tmp_path: Path) -> None:
    """A start that waits is alive and asks for time; READY comes with the broker."""
    nats_server.stop()
    command = daemon("trainer", nats_server.url, tmp_path, "--set", "bus.connect_timeout_s=60")
    manager.start(command)
    message = manager.wait_for("EXTEND_TIMEOUT_USEC")
    assert "not connected" in message["STATUS"]
    manager.wait_for("EXTEND_TIMEOUT_USEC")
    assert not any("READY" in message for message in manager.messages)
    nats_server.start()
    manager.wait_for("READY")
    assert manager.end()[0] == ExitCode.OK


def test_reload(manager: ServiceManager, nats_server: NatsServer, tmp_path: Path) -> None:
    """What may change does; a file that asks for more, or is broken, is refused with words and changes nothing."""
    file = tmp_path / "tide.toml"
    file.write_text('[log]\nlevel = "info"\n')
    manager.start(daemon("controller", nats_server.url, tmp_path, "--config", str(file)))
    manager.wait_for("READY")
    for text, expected in (
        ('[log]\nlevel = "warning"\n', "reloaded: log.level"),
        ('[log]\nlevel = "info"\n[controller]\ntick_s = 2.0\n', "controller.tick_s can change at a restart only"),
        ("[log\n", "not valid TOML"),
        ('[log]\nlevel = "info"\n', "reloaded: log.level"),
    ):
        file.write_text(text)
        assert manager.process is not None
        manager.process.send_signal(signal.SIGHUP)
        assert int(manager.wait_for("RELOADING")["MONOTONIC_USEC"]) > 0
        assert expected in manager.wait_for("READY")["STATUS"]
    code, output = manager.end()
    assert code == ExitCode.OK
    assert output.count("reload_refused") == 2


@pytest.mark.parametrize("how", ["blocked", "waiting"])
def test_a_hang_is_ended_and_the_next_start_works(how: str, manager: ServiceManager, tmp_path: Path) -> None:
    """A blocked loop and one that waits for ever both starve the watchdog; where it hung is in the log."""
    for _ in range(2):
        manager.start([*HANGING, how, str(tmp_path / "state")])
        manager.wait_for("READY")
        with pytest.raises(AssertionError, match="fed for"):
            manager.watch(3.0)
        assert manager.process is not None
        manager.process.send_signal(signal.SIGUSR1)
        silence_s = manager.watch(20.0)
        assert silence_s < 2 * manager.watchdog_s
        output, _ = manager.process.communicate(timeout=10)
        assert manager.process.returncode == -signal.SIGABRT
        assert "Fatal Python error: Aborted" in output
        assert ("hang_here" in output) if how == "blocked" else ("loops_late" in output and "controller.work" in output)

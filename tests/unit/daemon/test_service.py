"""What the service manager hears, over a real socket, turn by turn."""

import asyncio
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.service_manager import ServiceManager
from tide_daemon.notify import Notifier
from tide_daemon.service import ServiceLink


class Watched:
    """A daemon as the test wants it."""

    def __init__(self) -> None:
        self.is_ready = False
        self.wrong: dict[str, str] = {}
        self.stuck: dict[str, float] = {}

    def ready(self) -> bool:
        return self.is_ready

    def health(self) -> Mapping[str, str]:
        return {"bus": "ok", **self.wrong}

    def late(self) -> Mapping[str, float]:
        return self.stuck


@pytest.fixture(params=[False, True], ids=["path", "abstract"])
def manager(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ServiceManager]:
    manager = ServiceManager(tmp_path, abstract=request.param)
    yield manager
    manager.close()


def heard(manager: ServiceManager) -> list[dict[str, str]]:
    """What came since the last look."""
    before = len(manager.messages)
    while manager.receive(0.0) is not None:
        continue
    return manager.messages[before:]


def link(manager: ServiceManager, watched: Watched, stop: asyncio.Event, watchdog_s: float = 30.0) -> ServiceLink:
    return ServiceLink(Notifier(manager.address, watchdog_s), watched, stop)


async def test_ready_comes_when_the_work_can_start(manager: ServiceManager) -> None:
    """Until then each beat asks for more time; afterwards it does not."""
    watched = Watched()
    service = link(manager, watched, asyncio.Event())
    watched.wrong = {"server.engine": "the engine\nis starting"}
    service.turn(0.0)
    (beat,) = heard(manager)
    assert beat["WATCHDOG"] == "1" and int(beat["EXTEND_TIMEOUT_USEC"]) > 3 * 10e6
    assert beat["STATUS"] == "not ready; server.engine: the engine is starting"
    service.turn(1.0)
    assert heard(manager) == []
    watched.is_ready, watched.wrong = True, {}
    service.turn(2.0)
    assert heard(manager) == [{"READY": "1", "STATUS": "ready"}]
    service.turn(10.0)
    assert heard(manager) == [{"WATCHDOG": "1", "STATUS": "ready"}]
    watched.is_ready = False
    service.turn(20.0)
    assert heard(manager) == [{"WATCHDOG": "1", "STATUS": "not ready"}], "READY is not taken back"


async def test_a_stuck_loop_starves_the_watchdog(manager: ServiceManager) -> None:
    """Before READY as after it; it is fed again when the loop comes round."""
    watched = Watched()
    service = link(manager, watched, asyncio.Event())
    watched.stuck = {"server.observe": 601.0}
    service.turn(0.0)
    assert heard(manager) == []
    watched.stuck = {}
    service.turn(1.0)
    assert [message["WATCHDOG"] for message in heard(manager)] == ["1"]


async def test_stopping_is_told_once_and_buys_time(manager: ServiceManager) -> None:
    """Roles that drain are not late, and READY is not told any more."""
    watched, stop = Watched(), asyncio.Event()
    watched.is_ready, watched.stuck = True, {"server.observe": 601.0}
    service = link(manager, watched, stop)
    stop.set()
    service.turn(0.0)
    stopping, beat = heard(manager)
    assert stopping["STOPPING"] == "1" and "READY" not in beat
    assert beat["WATCHDOG"] == "1" and "EXTEND_TIMEOUT_USEC" in beat
    service.turn(10.0)
    assert [set(message) for message in heard(manager)] == [{"WATCHDOG", "EXTEND_TIMEOUT_USEC"}]


async def test_stopping_is_told_at_once(manager: ServiceManager) -> None:
    """Not at the next beat."""
    stop, watched = asyncio.Event(), Watched()
    watched.is_ready = True
    running = asyncio.create_task(link(manager, watched, stop).run())
    await asyncio.to_thread(manager.wait_for, "READY", 5.0)
    stop.set()
    await asyncio.to_thread(manager.wait_for, "STOPPING", 5.0)
    running.cancel()


async def test_a_manager_that_is_not_there_changes_nothing() -> None:
    """No socket, or one that nobody listens on."""
    for address in ("", "/nowhere/notify"):
        watched = Watched()
        watched.is_ready = True
        ServiceLink(Notifier(address), watched, asyncio.Event()).turn(0.0)


def test_the_environment_is_taken_over_and_emptied() -> None:
    """Children must not speak for us, and a watchdog meant for another process is not ours."""
    environ = {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid()), "X": "1"}
    notifier = Notifier.from_environment(environ)
    assert notifier.is_heard and notifier.watchdog_s == 30.0 and environ == {"X": "1"}
    assert Notifier.from_environment({"WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}).watchdog_s == 0.0
    assert not Notifier.from_environment({"NOTIFY_SOCKET": "vsock:2:1"}).is_heard


async def test_a_fault_in_what_is_told_is_no_hang(manager: ServiceManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd would end a daemon that serves, since its words of status cannot be made."""
    watched, stop = Watched(), asyncio.Event()
    watched.is_ready = True
    service = link(manager, watched, stop, watchdog_s=0.15)

    def failing() -> Mapping[str, str]:
        raise KeyError("a bug")

    monkeypatch.setattr(watched, "health", failing)
    running = asyncio.create_task(service.run())
    await asyncio.sleep(0.5)
    assert not running.done()
    assert sum("WATCHDOG" in message for message in heard(manager)) >= 3
    monkeypatch.undo()
    await asyncio.sleep(0.2)
    assert heard(manager)[-1].get("WATCHDOG") == "1"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

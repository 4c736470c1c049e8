"""Signals of a daemon's life: the first asks to stop, the second insists, SIGHUP reloads the configuration.

Handlers of the `signal` module rather than of the loop: they run even when the loop is stuck in
Python code, which is when a second signal is needed. Insisting kills our children (SGLang that we
started leaves none of its GPU memory behind then) and ends the process without cleaning up. SGLang
that was adopted is no child: it serves on, and the next daemon adopts it again.
"""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import structlog

from tide_daemon.exit_codes import ExitCode

log = structlog.get_logger()

_STOPPING = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def handled(stop: asyncio.Event, reload: Callable[[], None]) -> Iterator[None]:
    """Set `stop` at the first SIGTERM or SIGINT; end the process at the second. Old handlers are put back.

    `reload` is called in the loop at SIGHUP.

    Call it in the main thread with the loop running.
    """
    loop = asyncio.get_running_loop()

    def on_stop(number: int, _frame: FrameType | None) -> None:
        # From now on a signal insists, whether the loop has come to see this one or is stuck.
        for each in _STOPPING:
            signal.signal(each, lambda again, _frame: insist(again))
        loop.call_soon_threadsafe(_ask, stop, number)

    before = {number: signal.getsignal(number) for number in (*_STOPPING, signal.SIGHUP)}
    # asyncio's own way sets the wakeup file descriptor, for all signals: one that arrives just before the loop
    # sleeps in its selector would else be handled only when something other wakes it.
    loop.add_signal_handler(signal.SIGHUP, reload)
    for number in _STOPPING:
        signal.signal(number, on_stop)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        for number, handler in before.items():
            signal.signal(number, handler)


def insist(number: int) -> None:
    """Kill every descendant of this process and leave with ExitCode.INSISTED."""
    killed = kill_descendants(os.getpid())
    os.write(1, f"tide-daemon: signal {number} again, {killed} child processes killed, not drained\n".encode())
    os._exit(ExitCode.INSISTED)


def kill_descendants(pid: int) -> int:
    """SIGKILL to all children of `pid` and theirs; returns how many were reached.

    Reads /proc, so it works for processes that their parent never told us of (SGLang's schedulers).
    """
    killed = 0
    for child in descendants(pid):
        try:
            os.kill(child, signal.SIGKILL)
            killed += 1
        except ProcessLookupError:
            continue
    return killed


def descendants(pid: int) -> list[int]:
    """Process ids of all children of `pid` and theirs, parents first, from one look at /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text(errors="replace")
        except OSError:
            continue
        parent = int(stat.rpartition(")")[2].split()[1])  # the name in brackets may hold blanks and brackets
        children.setdefault(parent, []).append(int(entry.name))
    found, todo = [], list(children.get(pid, ()))
    while todo:
        child = todo.pop(0)
        found.append(child)
        todo += children.get(child, ())
    return found


def _ask(stop: asyncio.Event, number: int) -> None:
    log.info("stop_requested", signal=signal.Signals(number).name)
    stop.set()

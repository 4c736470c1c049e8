"""The first signal asks, the second insists, even when the loop is stuck; children do not outlive it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tide_daemon.exit_codes import ExitCode
from tide_daemon.signals import descendants

DAEMON = """
import asyncio, subprocess, sys, time
from tide_daemon import signals

async def main():
    stop = asyncio.Event()
    with signals.handled(stop, lambda: print("hangup seen", flush=True)):
        child = subprocess.Popen(["sh", "-c", "sleep 60 & echo $! $$; wait"], stdout=subprocess.PIPE, text=True)
        print(child.stdout.readline().strip(), flush=True)
        if "stuck" in sys.argv:
            time.sleep(60)
        await stop.wait()
        print("asked", flush=True)
        if "slow" in sys.argv:
            await asyncio.sleep(60)
        child.kill()
    print("handlers put back", flush=True)

asyncio.run(main())
"""


class Script:
    """The script above as a process; its children's ids are its first line."""

    def __init__(self, *words: str) -> None:
        command = [sys.executable, "-c", DAEMON, *words]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.children = [int(word) for word in self.process.stdout.readline().split()]

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=20)
        return self.process.returncode, output


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_first_signal_asks() -> None:
    """Either signal; the script ends by itself with code 0."""
    for number in (signal.SIGTERM, signal.SIGINT):
        script = Script()
        script.send(number)
        code, output = script.end()
        assert (code, output.splitlines()[-2:]) == (0, ["asked", "handlers put back"])
        for child in script.children:
            if is_alive(child):
                os.kill(child, signal.SIGKILL)


def test_the_second_signal_insists() -> None:
    """While draining: exit code 130, the child and its child killed."""
    script = Script("slow")
    script.send(signal.SIGTERM)
    while script.read() != "asked":
        continue
    script.send(signal.SIGINT)
    code, output = script.end()
    assert code == ExitCode.INSISTED
    assert "2 child processes killed" in output
    assert_gone(script.children)


def test_a_stuck_loop_does_not_hide_the_second_signal() -> None:
    """The loop never sees the first one; the second still ends the process."""
    script = Script("stuck")
    time.sleep(0.2)
    script.send(signal.SIGTERM)
    time.sleep(0.2)
    assert script.process.poll() is None
    script.send(signal.SIGTERM)
    assert script.end()[0] == ExitCode.INSISTED
    assert_gone(script.children)


def test_hangup_calls_back() -> None:
    """SIGHUP is handed on and ends nothing."""
    script = Script()
    script.send(signal.SIGHUP)
    assert script.read() == "hangup seen"
    assert script.process.poll() is None
    script.send(signal.SIGTERM)
    assert script.end()[0] == 0
    for child in script.children:
        if is_alive(child):
            os.kill(child, signal.SIGKILL)


def test_descendants_are_found_through_their_parents() -> None:
    """Children first, then theirs; a name with blanks and brackets does not confuse it."""
    script = Script()
    try:
        grandchild, child = script.children
        assert descendants(script.process.pid) == [child, grandchild]
        assert descendants(grandchild) == []
    finally:
        for pid in (*script.children, script.process.pid):
            os.kill(pid, signal.SIGKILL)
        script.end()


def assert_gone(children: list[int]) -> None:
    end = time.monotonic() + 5
    while any(is_alive(child) for child in children) and time.monotonic() < end:
        time.sleep(0.02)
    assert [child for child in children if is_alive(child)] == []

"""Child processes of the demonstration: started in their own groups, logged to files, always stopped.

A child's group is killed if it does not end by itself, so that a Ctrl-C at any moment leaves nothing
behind. `keep_alive` does what systemd does for the roles; what a role starts, it supervises itself.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

TERM_DEADLINE_S = 20.0
"""A role drains within its own deadline (10 s by default) and stops its engine; then it is killed."""


RESTART_AFTER_S = 2.0
STAYS_DOWN = (0, 2)
"""As RestartSec, Restart=on-failure and RestartPreventExitStatus in systemd/tide-daemon@.service."""


@dataclass(slots=True)
class Child:
    """One started process. `log` receives both its output streams; `command` and `env` start it again."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path
    command: Sequence[str]
    env: Mapping[str, str]

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def last_lines(self, count: int = 12) -> str:
        """The end of the log, for an error message."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:])
        except OSError:
            return ""


@dataclass(slots=True)
class Children:
    """All children, stopped in the reverse order of their start."""

    log_dir: Path
    started: list[Child] = field(default_factory=list)

    def start(self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None) -> Child:
        """Start `command` in a new session; `env` is added to this process's environment."""
        self.log_dir.mkdir(parents=True, exist_ok=True)
        log = self.log_dir / f"{name}.log"
        child = Child(name, _open(log, command, env or {}), log, command, env or {})
        self.started.append(child)
        return child

    async def keep_alive(self, told: Callable[[str], None]) -> None:
        """Start again, until cancelled, whichever child has failed; `told` gets a sentence each time."""
        while True:
            await asyncio.sleep(RESTART_AFTER_S)
            for child in self.started:
                if not child.running and child.popen.returncode not in STAYS_DOWN:
                    told(f"{child.name} ended with code {child.popen.returncode}: started again")
                    child.popen = _open(child.log, child.command, child.env)

    def stop(self, deadline_s: float = TERM_DEADLINE_S) -> None:
        """SIGTERM to all, newest first, then SIGKILL to every group that is still there."""
        for child in reversed(self.started):
            if child.running:
                child.popen.terminate()
        end = time.monotonic() + deadline_s
        for child in reversed(self.started):
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.popen.wait(timeout=max(0.0, end - time.monotonic()))
        for child in self.started:
            # The group may outlive its leader (SGLang starts several processes).
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.popen.pid, signal.SIGKILL)
            child.popen.wait()
        self.started.clear()


def _open(log: Path, command: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **env},
            start_new_session=True,
        )

"""Child processes of the demonstration: started in their own groups, logged to files, always stopped.

A child's group is killed if it does not end by itself, so that a Ctrl-C at any moment leaves nothing
behind. Restarting is not done here: the roles supervise what they start, and systemd the roles.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

TERM_DEADLINE_S = 20.0
"""A role drains within its own deadline (10 s by default) and stops its engine; then it is killed."""


@dataclass(slots=True)
class Child:
    """One started process. `log` receives both its output streams."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

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
        with log.open("ab") as output:
            popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        child = Child(name, popen, log)
        self.started.append(child)
        return child

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

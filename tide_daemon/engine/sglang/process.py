"""The engine's operating-system process: start, adopt, watch, end.

SGLang is started in a session of its own, so that one signal to the process group reaches all its
processes, and so that it outlives a daemon that is killed: serving goes on. `engine.json` in the run
directory says which process it is; the next daemon adopts it when it still runs with the same
arguments, and replaces it when they changed.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tide_daemon.errors import EngineError

RECORD = "engine.json"
LOG = "engine.log"
MAX_LOG_BYTES = 64 << 20
_POLL_S = 0.1
_KILL_WAIT_S = 5.0


class EngineProcess:
    """One running `sglang.launch_server`, ours or adopted.

    Attributes:
        pid: of its first process, which is also its process group.
        adopted: an earlier daemon started it.
    """

    def __init__(self, pid: int, child: subprocess.Popen[bytes] | None) -> None:
        self.pid = pid
        self.adopted = child is None
        self._child = child
        self._started = _start_time(pid)

    @classmethod
    def spawn(cls, arguments: Sequence[str], environment: Mapping[str, str], run_dir: Path) -> "EngineProcess":
        """Start SGLang; its output goes to engine.log.

        Raises:
            EngineError: the process could not be made.
        """
        trim_log(run_dir)
        command = [sys.executable, "-m", "sglang.launch_server", *arguments]
        try:
            with (run_dir / LOG).open("ab") as log:
                child = subprocess.Popen(
                    command,
                    env=dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            raise EngineError(f"cannot start SGLang: {error}") from error
        process = cls(child.pid, child)
        record = {"pid": child.pid, "started": process._started, "arguments": digest_of(arguments, environment)}
        part = run_dir / f"{RECORD}.part"
        part.write_text(json.dumps(record))
        part.replace(run_dir / RECORD)
        return process

    @classmethod
    def left_behind(cls, run_dir: Path) -> "EngineProcess | None":
        """The process that an earlier daemon left running, None when there is none."""
        record = _read_record(run_dir)
        if record is None or _start_time(record[0]) != record[1]:
            return None
        return cls(record[0], None)

    @staticmethod
    def recorded_digest(run_dir: Path) -> str:
        """How the recorded process was started, see `digest_of`; "" when nothing is recorded."""
        record = _read_record(run_dir)
        return "" if record is None else record[2]

    def alive(self) -> bool:
        """Whether the first process still runs."""
        if self._child is not None:
            return self._child.poll() is None
        return _start_time(self.pid) == self._started

    @property
    def exit_code(self) -> int | None:
        """Its exit code, None when it runs or was not our child."""
        return None if self._child is None else self._child.poll()

    async def wait(self) -> None:
        """Return when the first process has ended."""
        await _poll_until(lambda: not self.alive(), None)

    async def end(self, deadline_s: float) -> None:
        """SIGTERM, then after `deadline_s` SIGKILL, to the whole group. Returns when all are gone."""
        self._signal(signal.SIGTERM)
        await _poll_until(lambda: not self.alive(), deadline_s)
        # Bounded: a dead member that its parent never reaps keeps the group's name for ever.
        until = time.monotonic() + _KILL_WAIT_S
        while self._group_exists() and (self.alive() or time.monotonic() < until):
            self._signal(signal.SIGKILL)
            self.alive()  # reaps our child
            await asyncio.sleep(_POLL_S)

    def _signal(self, number: int) -> None:
        # After the leader is gone its id may name somebody else's group only if that was made anew; members that are
        # left keep the group id taken, so checking for the group is enough.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def _group_exists(self) -> bool:
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return False  # another user's: not ours any more
        return True


async def _poll_until(condition: Callable[[], bool], deadline_s: float | None) -> None:
    """Return when the condition holds, or after the deadline. A process that is not our child can only be polled."""
    until = None if deadline_s is None else time.monotonic() + deadline_s
    while not condition():
        if until is not None and time.monotonic() >= until:
            return
        await asyncio.sleep(_POLL_S)


def digest_of(arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """Names a way of starting: the arguments and those variables that change how SGLang runs."""
    chosen = {
        k: v for k, v in environment.items() if k.startswith(("SGLANG_", "TIDE_", "OMP_", "CUDA_VISIBLE", "HIP_"))
    }
    return hashlib.sha256(json.dumps([list(arguments), sorted(chosen.items())]).encode()).hexdigest()


def trim_log(run_dir: Path) -> None:
    """Keep engine.log bounded: beyond 64 MiB it becomes engine.log.1. SGLang appends, so emptying is safe."""
    log = run_dir / LOG
    with contextlib.suppress(OSError):
        if log.stat().st_size > MAX_LOG_BYTES:
            shutil.copyfile(log, log.with_suffix(".log.1"))
            os.truncate(log, 0)


def last_log_lines(run_dir: Path, count: int = 5) -> str:
    """The end of engine.log, for an error message."""
    try:
        with (run_dir / LOG).open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 4096))
            lines = log.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return " | ".join(line.strip()[:300] for line in lines[-count:] if line.strip())


def _start_time(pid: int) -> int:
    """Start time of a process in clock ticks since boot, -1 when it does not run. With the pid it names one process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return -1
    return -1 if fields[0] in "ZX" else int(fields[19])


def _read_record(run_dir: Path) -> tuple[int, int, str] | None:
    try:
        record = json.loads((run_dir / RECORD).read_text())
        return int(record["pid"]), int(record["started"]), str(record["arguments"])
    except (OSError, ValueError, KeyError, TypeError):
        return None

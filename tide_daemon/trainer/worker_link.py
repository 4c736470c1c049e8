"""The daemon's end of the worker process: start it, give it a job, follow its progress, end it.

The worker holds torch and the training state; the daemon's process holds neither, so a crash, an out-of-memory kill or
a hang of training never takes the store or the bus connection with it. One job at a time. A worker that dies is
reported as WorkerDiedError; the caller asks for the same job again and the new worker goes on from its checkpoint.
"""

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

import structlog

from tide_daemon.errors import TideError
from tide_daemon.trainer.pipe import Message, PipeError, pack, read_async
from tide_daemon.trainer.settings import TrainerSettings, to_map

log = structlog.get_logger()

ENVIRONMENT = {
    # Threads that spin between steps cost 10 to 30 times when cores are shared.
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "0",
    # Batches differ in rows, and oneDNN and PyTorch's layer above it each keep a thousand compiled shapes with their
    # scratch memory: 2.0 GB after 90 steps of a 7 M draft, 0.63 GB with these, at about the same speed.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16",
    "LRU_CACHE_CAPACITY": "16",
}
"""What the worker's environment holds unless the daemon's own says otherwise."""

_STOP_S = 20.0
_SILENCE_S = 900.0
"""Longer than any step or score: a worker that says nothing for so long hangs."""


class WorkerDiedError(TideError):
    """The worker process ended before it answered."""


class JobFailedError(TideError):
    """The worker refused or failed a job; the message is its reason and the draft is as it was."""


class JobStoppedError(TideError):
    """A job ended because it was asked to; it can be asked for again and goes on where it was."""


class WorkerLink:
    """Owner of at most one worker process."""

    def __init__(self, settings: TrainerSettings, state_dir: Path) -> None:
        self._settings = settings
        self._state_dir = state_dir
        self._process: asyncio.subprocess.Process | None = None
        self._last_job = 0
        self._busy = asyncio.Lock()
        self.num_starts = 0

    @property
    def pid(self) -> int | None:
        """Process id of the running worker."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def run(self, command: Message, on_progress: Callable[[Message], None]) -> Message:
        """Run one job and return its "finished" event.

        Args:
            command: "do" (train or score) and its fields; the job id is added here.
            on_progress: called with each progress event.

        Raises:
            JobFailedError, JobStoppedError: see there.
            WorkerDiedError: the process is gone; the next call starts another.

        Cancelling it stops the worker's job between two steps and leaves the process running.
        """
        async with self._busy:
            if self.pid is None:
                await self._start()
            self._last_job += 1
            job = self._last_job
            try:
                await self._send({**command, "job": job})
                return await self._await_end(job, on_progress)
            except asyncio.CancelledError:
                await self._abandon(job)
                raise

    async def _await_end(self, job: int, on_progress: Callable[[Message], None]) -> Message:
        while True:
            event = await self._receive()
            if event.get("job") != job:
                continue
            match event["event"]:
                case "progress":
                    on_progress(event)
                case "finished":
                    return event
                case "stopped":
                    raise JobStoppedError("the job was stopped")
                case "failed":
                    raise JobFailedError(str(event["reason"]))
                case other:
                    raise WorkerDiedError(f"the worker sent {other!r}, which this release does not know")

    async def _abandon(self, job: int) -> None:
        """After a cancellation: have the job stop, or the worker with it."""
        try:
            async with asyncio.timeout(_STOP_S):
                await self._send({"do": "stop"})
                while (event := await self._receive()).get("job") != job or event["event"] == "progress":
                    pass
        except (WorkerDiedError, TimeoutError):
            await self.kill()

    async def stop_job(self) -> None:
        """Ask the running job to stop between two steps; `run` then raises JobStoppedError."""
        if self.pid is not None:
            await self._send({"do": "stop"})

    async def _start(self) -> None:
        # stdout carries frames only; the worker sends everything else that prints to stderr, which is ours.
        environment = {**ENVIRONMENT, **os.environ, "OMP_NUM_THREADS": str(self._settings.threads)}
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tide_daemon.trainer.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
        )
        self.num_starts += 1
        log.info("worker_started", pid=self._process.pid, starts=self.num_starts)
        await self._send({"do": "open", "settings": to_map(self._settings), "state_dir": str(self._state_dir)})
        event = await self._receive()
        if event.get("event") != "ready":
            await self.kill()
            raise JobFailedError(str(event.get("reason", "the worker did not get ready")))

    async def _send(self, message: Message) -> None:
        process = self._process
        if process is None or process.stdin is None:
            raise WorkerDiedError("the worker process is not running")
        try:
            process.stdin.write(pack(message))
            await process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            raise await self._died() from None

    async def _receive(self) -> Message:
        process = self._process
        if process is None or process.stdout is None:
            raise WorkerDiedError("the worker process is not running")
        try:
            async with asyncio.timeout(_SILENCE_S):
                event = await read_async(process.stdout)
        except TimeoutError:
            await self.kill()
            raise WorkerDiedError(f"the training worker said nothing for {_SILENCE_S:g} s and was killed") from None
        except PipeError as error:
            await self.kill()
            raise WorkerDiedError(str(error)) from error
        if event is None:
            raise await self._died()
        return event

    async def _died(self) -> WorkerDiedError:
        process, self._process = self._process, None
        if process is None:
            return WorkerDiedError("the training worker was ended")
        code = await process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        hint = " (9 without anybody sending it: out of memory)" if code == -9 else ""
        log.warning("worker_died", exit_code=code)
        return WorkerDiedError(f"the training worker {how}{hint}")

    async def kill(self) -> None:
        """End the worker process now. Its last checkpoint stays."""
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        process.kill()
        await process.wait()

    async def close(self, deadline_s: float = _STOP_S) -> None:
        """End the worker: close its pipe, which makes it checkpoint and leave, and kill it after `deadline_s`."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(deadline_s):
                await process.wait()
            self._process = None
        except TimeoutError:
            await self.kill()

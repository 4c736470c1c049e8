"""The real engine behind engine/port.py: `sglang.launch_server` with our plug-in, started here or elsewhere.

"launch": prepare a placeholder draft and the plug-in's settings in the run directory, start SGLang with
the operator's own arguments and ours, watch it, start it again when it ends (1 s later, doubling up to a
limit; counted and reported). "attach": the same without a process: somebody else starts SGLang, with what
`tide-daemon sglang` prepares in the run directory.

What is not done here: deciding what the engine should run. After a restart it has version 0 and decodes
plainly until the role applies the desired draft again.
"""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import structlog

from tide_daemon.api_keys import without_keys
from tide_daemon.engine.port import CaptureSettings, DraftState, EngineStats
from tide_daemon.engine.ring import remove_stale_rings
from tide_daemon.engine.sglang.link import DOWN, EngineLink
from tide_daemon.engine.sglang.process import EngineProcess, digest_of, last_log_lines, trim_log
from tide_daemon.engine.sglang.settings import ring_prefix
from tide_daemon.engine.sglang.start import (
    SglangSettings,
    admin_key,
    check_arguments,
    check_dtype,
    check_port,
    command,
    prepare,
)
from tide_daemon.engine.sglang.target import default_aux_layers_of, target_spec
from tide_daemon.errors import EngineError, TideError
from tide_daemon.wire.records import HiddenChunk, TargetSpec

log = structlog.get_logger()

_PROBE_INTERVAL_S = 0.5
_STABLE_S = 60.0
_FIRST_BACKOFF_S = 1.0
_WATCH_INTERVAL_S = 5.0
_SILENT_S = 30.0


class SglangEngine:
    """One SGLang on this node. Implements engine/port.py's Engine; used from one event loop."""

    def __init__(self, settings: SglangSettings) -> None:
        """Raises ConfigError when the target cannot be read or the arguments cannot work."""
        self._settings = settings
        self._layers = settings.aux_layer_ids or default_aux_layers_of(settings.model_path)
        self._target = target_spec(settings.model_path, settings.model, self._layers)
        check_arguments(settings.arguments)
        if not settings.attach:
            check_dtype(settings.model_path, settings.arguments, settings.device)
        self._link = EngineLink(
            settings.run_dir,
            f"http://{settings.host}:{settings.port}",
            self._target,
            settings.node,
            codec=settings.codec,
            chunk_bytes=settings.chunk_bytes,
            chunk_max_age_s=settings.chunk_max_age_s,
            command_timeout_s=settings.command_timeout_s,
            key=admin_key(settings.arguments),
        )
        self._process: EngineProcess | None = None
        self._task: asyncio.Task[None] | None = None
        self._starts = 0
        self._known = False
        self._healthy = False  # its HTTP end answers
        self._failed = False  # it ended and has not been started again yet
        self._problem = ""

    @property
    def spec(self) -> TargetSpec | None:
        """What the engine serves: known for good once a plug-in has confirmed it."""
        self._known |= self._link.confirmed
        return self._target if self._known else None

    async def start(self) -> None:
        """Prepare the run directory, then start and supervise in the background.

        Raises:
            ConfigError, OSError: the run directory cannot be made ready.
        """
        settings = self._settings
        await asyncio.to_thread(prepare, settings, self._layers)
        self._task = asyncio.create_task(self._attached() if settings.attach else self._supervise(), name="tide-engine")

    async def stop(self, deadline_s: float) -> None:
        """Stop supervising; end SGLang if it was started here (or adopted). Never raises."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._healthy, self._failed = False, True
        if self._process is not None:
            await self._process.end(deadline_s)
            self._process = None
            self._clean_up()
        self._link.close()

    def _clean_up(self) -> None:
        """After the process has ended: drain what it left, remove its sockets and rings."""
        self._link.engine_gone()
        remove_stale_rings(Path(self._settings.plugin.ring_dir), ring_prefix(self._settings.run_dir))

    async def stats(self) -> EngineStats:
        """Counters and state. One that serves without its plug-in is "capture_off", one that fell silent "down"."""
        stats = await self._link.stats(self._starts, self._problem)
        if stats is not None and self._healthy:
            return stats
        if not self._healthy:
            state = "starting" if not self._failed else DOWN
        elif self._link.confirmed:
            state = DOWN
        else:
            state = "capture_off"
        return self._link.silent(state, self._starts, self._problem)

    async def swap(self, checkpoint_dir: str, state: DraftState) -> DraftState:
        """See engine/port.py."""
        return await self._link.swap(checkpoint_dir, state)

    async def set_steps(self, table: Sequence[tuple[int, int]]) -> None:
        """See engine/port.py."""
        await self._link.set_steps(table)

    async def set_capture(self, settings: CaptureSettings) -> None:
        """See engine/port.py."""
        await self._link.set_capture(settings)

    def take_chunks(self, max_bytes: int) -> list[HiddenChunk]:
        """See engine/port.py."""
        return self._link.take_chunks(max_bytes)

    # Supervising.

    async def _attached(self) -> None:
        """Follow an engine that somebody else starts and ends."""
        self._starts = 1
        while True:
            self._healthy = await self._link.answers()
            await asyncio.sleep(_PROBE_INTERVAL_S)

    async def _supervise(self) -> None:
        backoff = _FIRST_BACKOFF_S
        while True:
            started = time.monotonic()
            self._failed = False
            try:
                self._process = await self._start_or_adopt()
                await self._until_ready(self._process)
                self._problem = ""
                await self._until_ended(self._process)
                code = self._process.exit_code
                self._problem = f"SGLang ended (exit code {code}); last: {last_log_lines(self._settings.run_dir)}"
            except (TideError, OSError) as error:
                self._problem = str(error)
            self._healthy, self._failed = False, True
            if self._process is not None:
                await self._process.end(0.0)
                self._process = None  # its id may become somebody else's
            self._clean_up()
            if time.monotonic() - started > _STABLE_S:
                backoff = _FIRST_BACKOFF_S
            log.error("engine_ended", problem=self._problem, starts=self._starts, again_in_s=backoff)
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, self._settings.restart_backoff_max_s)

    async def _start_or_adopt(self) -> EngineProcess:
        arguments, environment = command(self._settings)
        run_dir = self._settings.run_dir
        left = EngineProcess.left_behind(run_dir)
        if left is not None:
            if EngineProcess.recorded_digest(run_dir) == digest_of(arguments, environment):
                log.info("engine_adopted", pid=left.pid)
                self._starts = max(self._starts, 1)
                return left
            log.info("engine_replaced", pid=left.pid, reason="it runs with other arguments")
            await left.end(10.0)
        await asyncio.to_thread(check_port, self._settings.host, self._settings.port)
        self._starts += 1
        process = EngineProcess.spawn(arguments, environment, run_dir)
        log.info("engine_started", pid=process.pid, starts=self._starts, arguments=without_keys(arguments))
        return process

    async def _until_ready(self, process: EngineProcess) -> None:
        """Return when SGLang serves. Whether the plug-in answers is another matter: serving goes on without it.

        Raises:
            EngineError: it ended, or did not answer in time.
        """
        until = time.monotonic() + self._settings.start_timeout_s
        while process.alive():
            if await self._serves():
                connected = await self._link.connect()
                self._healthy = True
                log.info("engine_ready", pid=process.pid, plugin=connected, problem=self._link.problem)
                return
            if time.monotonic() > until:
                last = last_log_lines(self._settings.run_dir)
                raise EngineError(f"SGLang did not answer within {self._settings.start_timeout_s:g} s; last: {last}")
            await asyncio.sleep(_PROBE_INTERVAL_S)
        last = last_log_lines(self._settings.run_dir)
        raise EngineError(f"SGLang ended while starting (exit code {process.exit_code}); last: {last}")

    async def _until_ended(self, process: EngineProcess) -> None:
        """Return when the process has ended. Keeps its log bounded meanwhile.

        Raises:
            EngineError: it lives but neither its plug-in nor its HTTP end has answered for a while.
        """
        silent_since: float | None = None
        while process.alive():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), _WATCH_INTERVAL_S)
            await asyncio.to_thread(trim_log, self._settings.run_dir)
            if not process.alive() or await self._link.answers() or await self._serves():
                silent_since = None
                continue
            silent_since = silent_since or time.monotonic()
            if time.monotonic() - silent_since > _SILENT_S:
                raise EngineError(f"SGLang runs but has not answered for {_SILENT_S:g} s")

    async def _serves(self) -> bool:
        """Whether SGLang's HTTP end answers /health. It generates a token for that, so this is for the start only."""
        url = f"http://{self._settings.host}:{self._settings.port}/health"
        try:
            timeout = aiohttp.ClientTimeout(total=5.0)
            async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

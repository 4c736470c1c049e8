"""One nats-py connection: how it is opened, what its errors mean, and requests that fail for a reason.

nats-py's own request() is not used, because three things end as a bare timeout there: a denied
permission (told only to the error callback), a connection lost while waiting, and a missing
stream. Here each fails the waiting request at once, with words. See nats.md, pitfalls 1, 2, 6, 12.

Nothing is sent while the connection is down: nats-py would keep it and send it after the caller
has given up. A request waits for the connection first, within its own time limit.
"""

import asyncio
import contextlib
import json
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from tide_daemon.addresses import without_login
from tide_daemon.errors import BusClosedError, BusError, BusSetupError, BusUnavailableError, MessageTooLargeError

MIN_SERVER = (2, 11)
HEADROOM_BYTES = 16 * 1024
"""Kept free under the server's max_payload: headers count there too, and going over closes nats-py for good."""
MAX_MESSAGE_BYTES = 8 << 20
"""JetStream discourages more, whatever max_payload says (nats.md, pitfall 7)."""

_DENIED = re.compile(r"permissions violation for (publish|subscription) to \"([^\"]*)\"")


@dataclass(frozen=True, slots=True)
class ConnectSettings:
    """Where the broker is and how to talk to it.

    Attributes:
        urls: nats://host:port; user and password may stand in it.
        name: shown in the server's monitoring.
        inbox_prefix: replies come under it, so that permissions can name it.
        domain: JetStream domain, "" for the server's own.
        nkey_seed_file: file with an nkey seed, "" for none (needs the package nkeys).
        credentials_file: file with a JWT and a seed, "" for none (needs the package nkeys).
        first_connect_s: limit of the first connect; nats-py alone would try for ever.
        reconnect_wait_s, ping_interval_s: a silent server is given up after three pings.
        pending_bytes: what nats-py may hold before a publish waits.
        tls: for tls:// addresses; None takes the system's certificate authorities.
    """

    urls: tuple[str, ...]
    name: str
    inbox_prefix: str = "_INBOX"
    domain: str = ""
    nkey_seed_file: str = ""
    credentials_file: str = ""
    first_connect_s: float = 10.0
    reconnect_wait_s: float = 0.5
    ping_interval_s: float = 10.0
    pending_bytes: int = 32 << 20
    tls: ssl.SSLContext | None = None

    @property
    def where(self) -> str:
        """The addresses as they may be told."""
        return ", ".join(map(without_login, self.urls))


class Connection:
    """An open connection. Make one with `await Connection.open(settings)`.

    `on_change` holds callbacks that run after the connection was lost or came back. What was asked
    for before that (a pull, say) has to be asked for again.
    """

    def __init__(self, settings: ConnectSettings) -> None:
        self.settings = settings
        self.client = Client()
        self.on_change: set[Callable[[], None]] = set()
        self.problems: list[str] = []
        self.num_losses = 0
        self._connected = asyncio.Event()
        self._closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._last_error = ""
        self._replies: dict[str, tuple[str, asyncio.Future[Msg]]] = {}
        self._next_reply = 0
        self._reply_prefix = ""
        self._denied: dict[str, Callable[[str], None]] = {}
        self._must_close = False  # nats-py asserts that connect() got anywhere before close()
        self._rejected: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def open(cls, settings: ConnectSettings) -> "Connection":
        """Connect, within settings.first_connect_s.

        Raises:
            BusUnavailableError: nobody answered in time.
            BusSetupError: the server refuses us, or is older than 2.11.
            BusClosedError: it closed the connection at once.
        """
        connection = cls(settings)
        try:
            await connection._connect()
            version = connection.client.connected_server_version
            if (version.major, version.minor) < MIN_SERVER:
                raise BusSetupError(
                    f"the nats-server at {settings.where} is version {version.major}.{version.minor}."
                    f"{version.patch}; 2.11 or later is needed (older ones silently ignore settings)"
                )
            connection._reply_prefix = connection.client.new_inbox()
            try:
                await connection.client.subscribe(f"{connection._reply_prefix}.*", cb=connection._on_reply)
            except (nats.errors.Error, OSError) as error:
                raise BusClosedError(f"the connection ended as soon as it was made: {error}") from error
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _connect(self) -> None:
        settings = self.settings
        auth: dict[str, Any] = {}
        if settings.tls is not None:
            auth["tls"] = settings.tls
        if settings.nkey_seed_file:
            _check_seed(settings.nkey_seed_file)
            auth["nkeys_seed"] = settings.nkey_seed_file
        if settings.credentials_file:
            auth["user_credentials"] = settings.credentials_file
        connecting = asyncio.ensure_future(
            self.client.connect(
                servers=list(settings.urls),
                name=settings.name,
                inbox_prefix=settings.inbox_prefix,
                error_cb=self._on_error,
                disconnected_cb=self._on_disconnected,
                reconnected_cb=self._on_reconnected,
                closed_cb=self._on_closed,
                max_reconnect_attempts=-1,
                reconnect_time_wait=settings.reconnect_wait_s,
                ping_interval=settings.ping_interval_s,
                max_outstanding_pings=2,
                pending_size=settings.pending_bytes,
                **auth,
            )
        )
        try:
            await asyncio.wait(
                {connecting, self._rejected}, timeout=settings.first_connect_s, return_when=asyncio.FIRST_COMPLETED
            )
            if self._rejected.done():
                self._must_close = True
                raise BusSetupError(f"the nats-server at {settings.where} refuses us: {self._last_error}")
            if not connecting.done():
                self._must_close = True
                raise BusUnavailableError(
                    f"no nats-server answered at {settings.where} within {settings.first_connect_s:g} s"
                    f" ({self._last_error or 'no error seen'})"
                )
            try:
                connecting.result()
                self._must_close = True
            except (OSError, ValueError, ImportError, nats.errors.Error) as error:
                raise BusSetupError(f"cannot connect to {settings.where}: {error}") from error
        finally:
            connecting.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError, ValueError, ImportError, nats.errors.Error):
                await connecting
        self._connected.set()

    @property
    def connected(self) -> bool:
        """True while nats-py believes in the connection; a silent server is noticed after three pings."""
        return self._connected.is_set() and not self._closed.done()

    @property
    def problem(self) -> str:
        """Why there is no connection now, "" while there is one."""
        if self.connected:
            return ""
        if self._closed.done():
            return f"the connection to the broker is closed: {self._closed.result()}"
        return f"not connected to the broker at {self.settings.where} ({self._last_error or 'no error seen'})"

    @property
    def max_payload(self) -> int:
        """Largest payload in bytes, as the server at the other end says now, head-room taken off."""
        return min(int(self.client.max_payload), MAX_MESSAGE_BYTES) - HEADROOM_BYTES

    def check_open(self) -> None:
        """Raise BusClosedError if the connection was closed for good."""
        if self._closed.done():
            raise BusClosedError(f"the connection to the broker is closed: {self._closed.result()}")

    async def wait_closed(self) -> str:
        """See port.Bus.wait_closed."""
        return await asyncio.shield(self._closed)

    async def wait_connected(self) -> None:
        """Returns once connected; raises BusClosedError if it is closed for good. Bound it with a timeout."""
        self.check_open()
        if not self._connected.is_set():
            await self._connected.wait()
            self.check_open()

    async def request(self, subject: str, data: bytes, timeout_s: float, headers: dict[str, str] | None = None) -> Msg:
        """The answer to a request, whatever it says.

        Raises:
            MessageTooLargeError, BusUnavailableError, BusError: as port.Bus.publish says.
        """
        if len(data) > self.max_payload:
            raise MessageTooLargeError(subject, len(data), self.max_payload)
        if sum(len(key) + len(value) + 4 for key, value in (headers or {}).items()) > HEADROOM_BYTES // 2:
            raise BusError(f"the headers of a message for {subject} are too long: {headers}")
        future: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._next_reply += 1
        token = str(self._next_reply)
        try:
            async with asyncio.timeout(timeout_s):
                await self.wait_connected()
                self._replies[token] = (subject, future)
                await self.client.publish(subject, data, reply=f"{self._reply_prefix}.{token}", headers=headers)
                return await future
        except TimeoutError as error:
            state = "no answer" if self.connected else "not connected to the broker"
            raise BusUnavailableError(f"{state} within {timeout_s:g} s for {subject}") from error
        except (nats.errors.Error, OSError) as error:
            self.check_open()
            raise BusUnavailableError(f"cannot send to {subject}: {error}") from error
        finally:
            self._replies.pop(token, None)
            if future.done() and not future.cancelled():
                future.exception()  # seen, even when the timeout came first

    async def api(self, request: str, body: dict[str, Any] | None = None, timeout_s: float = 5.0) -> dict[str, Any]:
        """A JetStream API request such as STREAM.INFO.X; the decoded answer, which may hold an "error".

        Raises:
            BusUnavailableError: no answer, or JetStream is not (yet) there.
            BusError: the answer is none of JetStream's.
        """
        message = await self.request(self.api_subject(request), json.dumps(body or {}).encode(), timeout_s)
        if status(message) == "503":
            raise BusUnavailableError(f"nobody answers {request}: JetStream is not enabled, starting or leaderless")
        return decoded(message, request)

    def api_subject(self, request: str) -> str:
        """The full subject of a JetStream API request."""
        return f"$JS.{self.settings.domain}.API.{request}" if self.settings.domain else f"$JS.API.{request}"

    def watch_denied(self, subject: str, told: Callable[[str], None]) -> None:
        """Call `told` with the reason when the server denies something on that subject. None stays after a call."""
        self._denied[subject.lower()] = told

    def unwatch_denied(self, subject: str) -> None:
        """Undo watch_denied."""
        self._denied.pop(subject.lower(), None)

    async def close(self, reason: str = "closed by us") -> None:
        """Send what is pending (2 s at most) and close. Safe to call twice."""
        if self.connected:
            with contextlib.suppress(TimeoutError, nats.errors.Error, OSError):
                async with asyncio.timeout(2.0):
                    await self.client.flush()
        self._end(reason)
        if self._must_close and not self.client.is_closed:
            with contextlib.suppress(TimeoutError, nats.errors.Error, OSError):
                async with asyncio.timeout(2.0):
                    await self.client.close()

    async def _on_reply(self, message: Msg) -> None:
        _, future = self._replies.get(message.subject.rsplit(".", 1)[1], ("", None))
        if future is not None and not future.done():
            future.set_result(message)

    async def _on_error(self, error: Exception) -> None:
        text = str(error) or type(error).__name__
        self._last_error = text
        self.problems = [*self.problems[-19:], text]
        if "authorization violation" in text.lower() and not self._rejected.done():
            self._rejected.set_result(None)  # matters to the first connect only: later, users may be reloaded
        denied = _DENIED.search(text.lower())
        if denied is None:
            return
        verb, subject = denied.groups()
        reason = f"permission denied: this user may not {'publish' if verb == 'publish' else 'subscribe'} to {subject}"
        for asked, future in list(self._replies.values()):
            if asked.lower() == subject and verb == "publish" and not future.done():
                future.set_exception(BusError(reason.replace(subject, asked)))
        told = self._denied.pop(subject, None)
        if told is not None:
            told(reason)

    async def _on_disconnected(self) -> None:
        self.num_losses += self.connected
        self._connected.clear()
        for subject, future in list(self._replies.values()):
            if not future.done():
                future.set_exception(
                    BusUnavailableError(f"the connection was lost while waiting for the answer to {subject}")
                )
        self._changed()

    async def _on_reconnected(self) -> None:
        self._connected.set()
        self._changed()

    async def _on_closed(self) -> None:
        self._end(self._last_error or "closed by the client library")

    def _end(self, reason: str) -> None:
        if not self._closed.done():
            self._closed.set_result(reason)
        for subject, future in list(self._replies.values()):
            if not future.done():
                future.set_exception(BusClosedError(f"the connection was closed while waiting for {subject}: {reason}"))
        self._connected.set()  # wakes who waits; check_open() tells them
        self._changed()

    def _changed(self) -> None:
        for callback in list(self.on_change):
            callback()


def _check_seed(path: str) -> None:
    """BusSetupError unless the file holds an nkey seed; nats-py would fail later, with nkeys' own error."""
    import nkeys  # only users with keys need it

    try:
        nkeys.from_seed(bytearray(Path(path).read_bytes().strip()))
    except (OSError, ValueError, nkeys.NkeysError) as error:
        raise BusSetupError(f"bus.nkey_file: {path} cannot be read or holds no nkey seed ({error})") from error


def status(message: Msg) -> str:
    """The status code of a message without payload, "" if it has none."""
    return str((message.headers or {}).get("Status", "")) if not message.data else ""


def decoded(answer: Msg, asked: str) -> dict[str, Any]:
    """JetStream's answer, whose "error", if it has one, is a map.

    Raises:
        BusError: it is something else. Whoever may subscribe to a subject may answer what is published to it.
    """
    try:
        body = json.loads(answer.data)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict) or not isinstance(body.get("error", {}), dict):
        raise BusError(f"not an answer of JetStream to {asked}: {answer.data[:100]!r}")
    return body

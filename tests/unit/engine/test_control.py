"""The control channel: calls, refusals, hostile bytes, silent peers."""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tide_daemon.engine.control import (
    MAX_CONNECTIONS,
    MAX_REQUEST_BYTES,
    ControlClient,
    ControlServer,
    decode_body,
    encode_frame,
    frame_length,
)
from tide_daemon.errors import EngineError


def refuse(args: object) -> dict[str, object]:
    raise EngineError("not today")


def broken(args: object) -> dict[str, object]:
    raise ZeroDivisionError("a bug")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "c.sock"


@pytest.fixture
def server(path: Path) -> Iterator[ControlServer]:
    made = ControlServer(path, {"echo": dict, "refuse": refuse, "broken": broken})
    yield made
    made.close()


async def test_call_returns_the_value(server: ControlServer, path: Path) -> None:
    answers = await asyncio.gather(*(ControlClient(path).call("echo", 5, number=n, text="x") for n in range(3)))
    assert answers == [{"number": n, "text": "x"} for n in range(3)]


def test_socket_is_private(server: ControlServer, path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("command", "words"), [("refuse", "not today"), ("broken", "ZeroDivisionError"), ("nothing", "unknown")]
)
async def test_refusals_name_the_reason(server: ControlServer, path: Path, command: str, words: str) -> None:
    with pytest.raises(EngineError, match=words):
        await ControlClient(path).call(command, 5)


async def test_nobody_there(path: Path) -> None:
    with pytest.raises(EngineError, match="no engine answers"):
        await ControlClient(path).call("echo", 5)


async def test_silent_peer_times_out(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(EngineError, match=r"did not answer 'echo' within 0\.2 s"):
            await ControlClient(path).call("echo", 0.2)


async def test_too_large_request_is_not_sent(server: ControlServer, path: Path) -> None:
    with pytest.raises(EngineError, match="over the limit"):
        await ControlClient(path).call("echo", 5, text="x" * MAX_REQUEST_BYTES)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\0\0",
        struct.pack(">I", 0),
        struct.pack(">I", 2**32 - 1),
        struct.pack(">I", 10) + b"abc",
        struct.pack(">I", 3) + b"abc",
        encode_frame({"v": 99, "command": "echo", "args": {}}, 1000),
        encode_frame({"v": 1, "command": "echo", "args": []}, 1000),
        encode_frame({"v": 1, "command": ["echo"], "args": {}}, 1000),
        struct.pack(">I", 1) + b"\xc1",
    ],
)
async def test_hostile_requests_get_one_refusal_and_others_are_served(
    server: ControlServer, path: Path, sent: bytes
) -> None:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(sent)
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 5)
    length = frame_length(answer[:4], 1 << 20)
    assert decode_body(answer[4:])["ok"] is False
    assert length == len(answer) - 4
    writer.close()
    assert await ControlClient(path).call("echo", 5, a=1) == {"a": 1}


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_random_bodies_give_a_map_or_the_one_error(body: bytes) -> None:
    try:
        message = decode_body(body)
    except EngineError:
        return
    assert message["v"] == 1


async def answer_with(path: Path, raw: bytes) -> asyncio.Server:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(raw)
        writer.close()

    return await asyncio.start_unix_server(serve, str(path))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        struct.pack(">I", 2**31),
        struct.pack(">I", 4) + b"\xc1abc",
        encode_frame({"v": 1, "ok": True}, 1000),
        encode_frame({"v": 1, "ok": 1, "value": {}}, 1000),
        struct.pack(">I", 20) + b"short",
    ],
)
async def test_hostile_answers_give_the_one_error(path: Path, raw: bytes) -> None:
    async with await answer_with(path, raw):
        with pytest.raises(EngineError):
            await ControlClient(path).call("echo", 5)


def test_long_socket_path_says_what_to_change(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="shorter run directory"):
        ControlServer(tmp_path / ("x" * 120), {})


def test_new_server_replaces_a_dead_ones_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    ControlServer(path, {}).close()
    assert not path.exists()


def test_nested_message_is_refused() -> None:
    with pytest.raises(EngineError):
        decode_body(b"\x91" * 5000)
    assert msgpack.version >= (1, 0, 0)


@pytest.fixture
def peers(path: Path) -> Iterator[list[socket.socket]]:
    """Sockets that are closed after the test."""
    made: list[socket.socket] = []
    yield made
    for peer in made:
        peer.close()


def connect(path: Path, peers: list[socket.socket], sent: bytes) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX)
    peers.append(peer)
    peer.connect(str(path))
    peer.sendall(sent)
    return peer


@pytest.mark.parametrize("sent", [b"", b"\0\0", struct.pack(">I", 100) + b"abc"], ids=["nothing", "length", "part"])
async def test_idle_connections_keep_nobody_out(
    server: ControlServer, path: Path, peers: list[socket.socket], sent: bytes
) -> None:
    """However many there are, and however often they come back."""
    for number in range(3):
        for _ in range(2 * MAX_CONNECTIONS):
            connect(path, peers, sent)
        assert await ControlClient(path).call("echo", 2, number=number) == {"number": number}


async def test_callers_that_take_no_answer_keep_nobody_out(path: Path, peers: list[socket.socket]) -> None:
    """An answer larger than the socket's buffer, which nobody reads."""
    server = ControlServer(path, {"much": lambda args: {"text": "x" * (2 << 20)}, "echo": dict})
    try:
        for _ in range(MAX_CONNECTIONS):
            connect(path, peers, encode_frame({"v": 1, "command": "much", "args": {}}, 1000))
        await asyncio.sleep(0.2)
        assert await ControlClient(path).call("echo", 2, a=1) == {"a": 1}
    finally:
        server.close()


async def test_callers_at_work_are_not_disturbed(path: Path, peers: list[socket.socket]) -> None:
    """With all of them at work the next one is turned away at once, and theirs are answered; threads are bounded."""
    at_work, done = threading.Semaphore(0), threading.Event()

    def work(args: object) -> dict[str, object]:
        at_work.release()
        done.wait(10)
        return {}

    server = ControlServer(path, {"work": work})
    try:
        calls = [asyncio.create_task(ControlClient(path).call("work", 10)) for _ in range(MAX_CONNECTIONS)]
        for _ in calls:
            await asyncio.to_thread(at_work.acquire, timeout=5)
        for _ in range(3):
            with contextlib.suppress(OSError):
                connect(path, peers, b"")
        with pytest.raises(EngineError, match="no engine answers"):
            await ControlClient(path).call("work", 5)
        assert sum(thread.name == "tide-control-call" for thread in threading.enumerate()) == MAX_CONNECTIONS
        done.set()
        assert await asyncio.gather(*calls) == [{}] * MAX_CONNECTIONS
    finally:
        done.set()
        server.close()

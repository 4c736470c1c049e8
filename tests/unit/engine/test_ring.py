"""The ring: order, wrap, full, labels, hostile headers, death of either side."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tide_daemon.engine.ring import RingReader, RingWriter, Rows, remove_stale_rings
from tide_daemon.engine.ring_layout import HEAD, HEADER_BYTES, MAX_LABELS, TAIL, RingLayout, parse_header
from tide_daemon.errors import EngineError

LAYOUT = RingLayout(num_slots=8, aux_width=6, topk=2)


def rows(start: int, count: int, layout: RingLayout = LAYOUT) -> Rows:
    """Rows whose every value follows from their number."""
    made = {}
    for name, (_, dtype, shape) in layout.columns.items():
        number = np.arange(start, start + count).reshape(-1, *([1] * (len(shape) - 1)))
        made[name] = np.broadcast_to(number % 1000, (count, *shape[1:])).astype(dtype)
    return made


def assert_rows(found: Rows, start: int, count: int) -> None:
    for name, expected in rows(start, count).items():
        assert np.array_equal(found[name], expected), name


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.ring"


def test_rows_come_out_in_order_and_unchanged(path: Path) -> None:
    writer = RingWriter(path, LAYOUT)
    with RingReader(path) as reader:
        assert writer.write(rows(0, 5)) == 5
        assert reader.waiting() == 5
        assert_rows(reader.take(3), 0, 3)
        assert_rows(reader.take(100), 3, 2)
        assert len(reader.take(100)["token_id"]) == 0
    writer.close()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 12)), max_size=40))
def test_any_interleaving_keeps_order_and_counts(steps: list[tuple[bool, int]]) -> None:
    """Whatever is written and taken when, rows come once, in order, and what did not fit is counted."""
    path = Path(f"/dev/shm/tide-unit-{os.getpid()}.ring")
    path.unlink(missing_ok=True)
    writer = RingWriter(path, LAYOUT)
    reader = RingReader(path)
    try:
        accepted: list[int] = []
        seen: list[int] = []
        number = dropped = 0
        for write, count in steps:
            if write:
                kept = writer.write(rows(number, count))
                accepted += range(number, number + kept)
                dropped += count - kept
                number += count
            else:
                seen += reader.take(count)["token_id"].tolist()
        seen += reader.take(100)["token_id"].tolist()
        assert seen == [n % 1000 for n in accepted]
        assert reader.num_dropped == dropped
    finally:
        reader.close()
        writer.close()
        Path(f"{path}.reader").unlink(missing_ok=True)


def test_full_ring_drops_the_newest_and_counts_them(path: Path) -> None:
    writer = RingWriter(path, LAYOUT)
    reader = RingReader(path)
    assert writer.write(rows(0, 11)) == 8
    assert writer.write(rows(11, 1)) == 0
    assert (writer.num_dropped, reader.num_dropped, writer.free_slots()) == (4, 4, 0)
    assert_rows(reader.take(100), 0, 8)
    assert writer.write(rows(20, 2)) == 2
    assert_rows(reader.take(100), 20, 2)


def test_file_is_private_and_reserved(path: Path) -> None:
    RingWriter(path, LAYOUT)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_blocks * 512 >= LAYOUT.total_bytes


def test_no_space_is_an_error_at_the_start(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(EngineError, match="free space there or lower ring_bytes"):
        RingWriter(path, LAYOUT)
    assert list(path.parent.iterdir()) == []


def test_labels(path: Path) -> None:
    writer = RingWriter(path, LAYOUT)
    with RingReader(path) as reader:
        assert reader.labels() == [""]
        assert [writer.label(name) for name in ("", "code", "chat", "code")] == [0, 1, 2, 1]
        assert reader.labels() == ["", "code", "chat"]
        assert writer.label("x" * 65) == 0
        for number in range(2 * MAX_LABELS):
            writer.label(f"n{number}")
        assert writer.label("one more") == 0
        assert len(reader.labels()) == MAX_LABELS + 1


def test_second_reader_is_refused(path: Path) -> None:
    RingWriter(path, LAYOUT)
    with RingReader(path), pytest.raises(EngineError, match="another daemon"):
        RingReader(path)
    RingReader(path).close()


def test_new_reader_goes_on_where_the_old_one_stopped(path: Path) -> None:
    writer = RingWriter(path, LAYOUT)
    writer.write(rows(0, 6))
    with RingReader(path) as first:
        first.take(2)
    with RingReader(path) as second:
        assert_rows(second.take(100), 2, 4)


def test_second_writer_of_a_living_ring_is_refused(path: Path) -> None:
    RingWriter(path, LAYOUT)
    with pytest.raises(EngineError, match="running engine"):
        RingWriter(path, LAYOUT)


@pytest.mark.parametrize("size", [0, 10, HEADER_BYTES - 1])
def test_short_file_is_refused(path: Path, size: int) -> None:
    path.write_bytes(b"\0" * size)
    with pytest.raises(EngineError):
        RingReader(path)


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=64, max_size=64), st.integers(0, 1 << 40))
def test_random_headers_give_the_one_error(start: bytes, size: int) -> None:
    with pytest.raises(EngineError):
        parse_header(start.ljust(HEADER_BYTES, b"\0"), size)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 63), st.integers(0, 255))
def test_header_with_one_byte_changed(offset: int, value: int) -> None:
    """Sizes that do not fit each other or the file are refused before anything is mapped.

    Columns are padded to 64 bytes, so that another number of slots can fill the same file; nothing lies outside it.
    """
    from tide_daemon.engine.ring_layout import pack_header

    header = bytearray(pack_header(LAYOUT, 7, 1).ljust(HEADER_BYTES, b"\0"))
    header[offset] = value
    try:
        layout, _, _ = parse_header(bytes(header), LAYOUT.total_bytes)
    except EngineError:
        return
    assert layout.total_bytes == LAYOUT.total_bytes
    assert max(start for start, _, _ in layout.columns.values()) < LAYOUT.total_bytes


@pytest.mark.parametrize(("offset", "value"), [(HEAD, 1 << 40), (HEAD, 9), (HEAD, 2**64 - 1)])
def test_corrupt_head_is_an_error(path: Path, offset: int, value: int) -> None:
    RingWriter(path, LAYOUT)
    reader = RingReader(path)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(value.to_bytes(8, "little"))
    with pytest.raises(EngineError, match="corrupt"):
        reader.take(10)


@pytest.mark.parametrize("value", [5, 1 << 40, 2**64 - 1])
def test_corrupt_tail_makes_the_writer_drop(path: Path, value: int) -> None:
    """A reader that lies about its position costs rows, never the engine."""
    writer = RingWriter(path, LAYOUT)
    with path.open("r+b") as file:
        file.seek(TAIL)
        file.write(value.to_bytes(8, "little"))
    assert writer.write(rows(0, 3)) == 0
    assert writer.num_dropped == 3


CHILD = """
import sys, time
import numpy as np
from pathlib import Path
from tests.unit.engine.test_ring import LAYOUT, rows
from tide_daemon.engine.ring import RingReader, RingWriter
if sys.argv[1] == "write":
    writer = RingWriter(Path(sys.argv[2]), LAYOUT)
    writer.write(rows(0, 5))
else:
    reader = RingReader(Path(sys.argv[2]))
    reader.take(2)
print("ready", flush=True)
time.sleep(60)
"""


def child(role: str, path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(CHILD), role, str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_killed_writer_leaves_rows_and_its_ring_is_removed(path: Path) -> None:
    """kill -9 of the writer: the reader drains what was written; the next writer starts a new epoch."""
    process = child("write", path)
    reader = RingReader(path)
    assert reader.writer_alive()
    assert remove_stale_rings(path.parent, "x") == 0
    kill(process)
    assert not reader.writer_alive()
    assert not reader.closed_by_writer
    assert remove_stale_rings(path.parent, "x") == 1
    again = RingWriter(path, LAYOUT)
    assert again.epoch != reader.epoch
    assert_rows(reader.take(100), 0, 5)
    assert not reader.writer_alive()
    reader.close()
    with RingReader(path) as fresh:
        again.write(rows(50, 1))
        assert_rows(fresh.take(100), 50, 1)


def test_killed_reader_is_replaced(path: Path) -> None:
    """kill -9 of the reader: the writer goes on, the next reader continues behind it."""
    writer = RingWriter(path, LAYOUT)
    writer.write(rows(0, 5))
    kill(child("read", path))
    assert writer.write(rows(5, 2)) == 2
    with RingReader(path) as reader:
        assert_rows(reader.take(100), 2, 5)


def test_closed_by_writer(path: Path) -> None:
    writer = RingWriter(path, LAYOUT)
    with RingReader(path) as reader:
        writer.write(rows(0, 2))
        writer.close()
        assert not path.exists()
        assert reader.closed_by_writer
        assert_rows(reader.take(100), 0, 2)


def test_concurrent_writer_and_reader_lose_nothing(path: Path) -> None:
    """A writer in another process, as fast as it can: every row that was not dropped arrives, in order."""
    code = """
    import sys
    from pathlib import Path
    from tests.unit.engine.test_ring import LAYOUT, rows
    from tide_daemon.engine.ring import RingWriter
    writer = RingWriter(Path(sys.argv[1]), LAYOUT)
    print("ready", flush=True)
    for number in range(3000):
        while writer.free_slots() < 3:
            pass
        writer.write(rows(3 * number, 3))
    sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdin is not None
    process.stdout.readline()
    with RingReader(path) as reader:
        number = 0
        until = time.monotonic() + 60
        while number < 9000 and time.monotonic() < until:
            found = reader.take(100)
            count = len(found["token_id"])
            assert_rows(found, number, count)
            number += count
    process.stdin.close()
    process.wait()
    process.stdout.close()
    assert number == 9000

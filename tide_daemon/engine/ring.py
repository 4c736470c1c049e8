"""The hidden-state ring: rows from the engine process to the daemon, through a mapped file.

Single producer, single consumer, drop-newest: the writer never waits; what does not fit is counted,
and the request is marked so that positions stay true. Layout and memory ordering: ring_layout.py.

Why a plain mapped file and not multiprocessing.shared_memory: the latter's resource tracker unlinks
segments that another live process still uses. The file lies in /dev/shm (or a configured directory),
mode 0600. Its space is reserved when it is made, so a full /dev/shm is an error at the start and not
a SIGBUS later.

Death of either side:
- The writer holds an flock on its file for life. A file whose lock can be taken has no writer left:
  the next writer of the same name removes it. A reader that still has it mapped drains it first.
- The reader's position (tail) lives in the header, so that a new reader goes on where the old one
  stopped. Rows that the old one had taken but not passed on are lost; samples are worth little.
- One reader at a time, held by an flock on "<ring>.reader".
"""

import contextlib
import fcntl
import mmap
import os
import secrets
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from tide_daemon.engine.ring_layout import (
    CLOSED,
    CONSUMER_PID,
    DROPPED,
    HEAD,
    HEADER_BYTES,
    INCOMPLETE,
    LABEL_BYTES,
    LABELS,
    MAX_LABELS,
    NUM_LABELS,
    TAIL,
    RingLayout,
    fence,
    pack_header,
    parse_header,
)
from tide_daemon.errors import EngineError

Rows = dict[str, np.ndarray]
"""Column name -> array of n rows; names, dtypes and widths as in ring_layout.py."""


class _Mapped:
    """A mapped ring file: the columns and the counters."""

    def __init__(self, fd: int, layout: RingLayout) -> None:
        self.layout = layout
        self.map = mmap.mmap(fd, layout.total_bytes)
        self.columns: Rows = {
            name: np.ndarray(shape, dtype, buffer=self.map, offset=offset)
            for name, (offset, dtype, shape) in layout.columns.items()
        }
        self.words = np.ndarray((HEADER_BYTES // 8,), np.dtype("<u8"), buffer=self.map)

    def get(self, offset: int) -> int:
        return int(self.words[offset // 8])

    def set(self, offset: int, value: int) -> None:
        self.words[offset // 8] = value

    def close(self) -> None:
        self.columns.clear()
        del self.words
        # Views handed out (torch.frombuffer) may still be alive: then the mapping goes with them.
        with contextlib.suppress(BufferError):
            self.map.close()


def remove_stale_rings(directory: Path, prefix: str) -> int:
    """Remove ring files "<prefix>*.ring" in `directory` that no living writer holds; returns how many."""
    removed = 0
    for path in directory.glob(f"{prefix}*.ring"):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # gone meanwhile, or another user's
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
            path.with_suffix(".ring.reader").unlink(missing_ok=True)
            removed += 1
        except OSError:
            pass  # its writer lives
        finally:
            os.close(fd)
    return removed


class RingWriter:
    """The producing end. Not thread-safe: one thread (the engine's step loop) uses it.

    Attributes:
        epoch: random number that names this life of the writer.
        columns: the mapped columns, for writers that copy into slots themselves (torch.frombuffer).
    """

    def __init__(self, path: Path, layout: RingLayout) -> None:
        """Make the file.

        Raises:
            EngineError: the file exists, or there is no space for it.
        """
        self.path = path
        self.layout = layout
        self.epoch = secrets.randbits(62) + 1
        if path.exists():
            raise EngineError(f"{path} belongs to a running engine; give this one its own TIDE_ENGINE_DIR")
        temporary = path.with_suffix(".making")
        try:
            self._fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.posix_fallocate(self._fd, 0, layout.total_bytes)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise EngineError(
                f"cannot make a ring of {layout.total_bytes} bytes at {path}: {error.strerror}; "
                "free space there or lower ring_bytes"
            ) from error
        self._mapped = _Mapped(self._fd, layout)
        self._mapped.map[:64] = pack_header(layout, self.epoch, os.getpid())
        self.columns = self._mapped.columns
        self._head = 0
        self._labels: dict[str, int] = {"": 0}
        temporary.rename(path)

    @property
    def num_rows(self) -> int:
        """Rows written since the start."""
        return self._head

    @property
    def num_dropped(self) -> int:
        """Rows dropped since the start."""
        return self._mapped.get(DROPPED)

    def free_slots(self) -> int:
        """Slots that may be written now. 0 when the reader's counter makes no sense."""
        used = self._head - self._mapped.get(TAIL)
        return self.layout.num_slots - used if 0 <= used <= self.layout.num_slots else 0

    def reserve(self, num_rows: int) -> list[slice]:
        """Slices of slots (one, or two at the wrap) for the next `num_rows` rows; they must be free."""
        start = self._head % self.layout.num_slots
        first = min(num_rows, self.layout.num_slots - start)
        return [slice(start, start + first)] + ([slice(0, num_rows - first)] if num_rows > first else [])

    def commit(self, num_rows: int) -> None:
        """Show the reader the rows that were written into the reserved slots."""
        fence()
        self._head += num_rows
        self._mapped.set(HEAD, self._head)

    def write(self, rows: Rows) -> int:
        """Copy rows in, as many as fit (the newest are dropped and counted); returns how many."""
        wanted = len(rows["token_id"])
        num_rows = min(wanted, self.free_slots())
        done = 0
        for slots in self.reserve(num_rows):
            count = slots.stop - slots.start
            for name, column in self.columns.items():
                column[slots] = rows[name][done : done + count]
            done += count
        self.commit(num_rows)
        if num_rows < wanted:
            self.count_dropped(wanted - num_rows, 0)
        return num_rows

    def count_dropped(self, num_rows: int, num_requests: int) -> None:
        """Add to the counters of dropped rows and of requests that became incomplete."""
        self._mapped.set(DROPPED, self._mapped.get(DROPPED) + num_rows)
        self._mapped.set(INCOMPLETE, self._mapped.get(INCOMPLETE) + num_requests)

    def label(self, name: str) -> int:
        """Index of a workload label, 0 (no label) when the table is full or the name is unusable."""
        known = self._labels.get(name)
        if known is not None:
            return known
        index = len(self._labels)
        encoded = name.encode("utf-8", "ignore")
        if index > MAX_LABELS or not 0 < len(encoded) <= LABEL_BYTES or b"\0" in encoded:
            return 0
        at = LABELS + (index - 1) * LABEL_BYTES
        self._mapped.map[at : at + LABEL_BYTES] = encoded.ljust(LABEL_BYTES, b"\0")
        fence()
        self._mapped.set(NUM_LABELS, index)
        self._labels[name] = index
        return index

    def close(self) -> None:
        """Remove the file; a reader that has it mapped may still drain it."""
        self.columns = {}
        self._mapped.set(CLOSED, 1)
        self._mapped.close()
        self.path.unlink(missing_ok=True)
        os.close(self._fd)


class RingReader:
    """The consuming end. One per ring at a time; not thread-safe.

    Everything read from the mapping is checked: the writer's process runs other people's code.
    """

    def __init__(self, path: Path) -> None:
        """Open an existing ring.

        Raises:
            EngineError: no such ring, not a ring, wrong sizes, or another reader has it.
        """
        self.path = path
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise EngineError(f"cannot open ring {path}: {error.strerror}") from error
        try:
            size = os.fstat(fd).st_size
            self.layout, self.epoch, self.producer_pid = parse_header(os.pread(fd, HEADER_BYTES, 0), size)
            self._lock_fd = os.open(f"{path}.reader", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(self._lock_fd)
                raise EngineError(f"another daemon reads ring {path}; one reader at a time") from error
            self._mapped = _Mapped(fd, self.layout)
        finally:
            os.close(fd)
        self._mapped.set(CONSUMER_PID, os.getpid())
        self._tail = self._mapped.get(TAIL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def num_dropped(self) -> int:
        """Rows that the writer dropped since its start."""
        return self._mapped.get(DROPPED)

    @property
    def num_written(self) -> int:
        """Rows that the writer wrote since its start."""
        return self._mapped.get(HEAD)

    @property
    def closed_by_writer(self) -> bool:
        """The writer ended in good order: nothing more will come."""
        return self._mapped.get(CLOSED) != 0

    def waiting(self) -> int:
        """Rows that may be read now.

        Raises:
            EngineError: the counters make no sense.
        """
        waiting = self._mapped.get(HEAD) - self._tail
        if not 0 <= waiting <= self.layout.num_slots:
            raise EngineError(f"ring {self.path}: head is {waiting} rows ahead of tail; the header is corrupt")
        return waiting

    def take(self, max_rows: int) -> Rows:
        """Copy up to `max_rows` rows out, oldest first, and free their slots. May be empty. Never blocks."""
        count = min(self.waiting(), max_rows)
        fence()
        start = self._tail % self.layout.num_slots
        first = min(count, self.layout.num_slots - start)
        rows: Rows = {}
        for name, column in self._mapped.columns.items():
            head = column[start : start + first]
            rows[name] = np.concatenate((head, column[: count - first])) if count > first else head.copy()
        fence()
        self._tail += count
        self._mapped.set(TAIL, self._tail)
        return rows

    def labels(self) -> list[str]:
        """All workload labels; entry 0 is ""."""
        count = min(self._mapped.get(NUM_LABELS), MAX_LABELS)
        table = [self._mapped.map[LABELS + i * LABEL_BYTES : LABELS + (i + 1) * LABEL_BYTES] for i in range(count)]
        return ["", *(raw.rstrip(b"\0").decode("utf-8", "replace") for raw in table)]

    def writer_alive(self) -> bool:
        """Whether a writer still holds this ring's file."""
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            if parse_header(os.pread(fd, HEADER_BYTES, 0), os.fstat(fd).st_size)[1] != self.epoch:
                return False
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except EngineError:
            return False
        finally:
            os.close(fd)
        return False

    def close(self) -> None:
        """Unmap. The tail stays in the header for the next reader."""
        self._mapped.close()
        os.close(self._lock_fd)

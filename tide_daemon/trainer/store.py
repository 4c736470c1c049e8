"""The bounded on-disk store of captured chunks: append, retention, dedupe, deletion, recovery.

It owns the segment files of one folder and is their only writer (a lock file says so). What `append` returned
from is on the disk: the caller acknowledges to the broker only then. Choices, each with the failure it avoids:

- envelopes are kept as they arrived, so nothing is decoded and packed again (cost), and checksums stay true;
- one fsync per append, which takes a whole fetch (a sync costs about 4 ms);
- a torn tail is cut off at start and counted (kill -9 in a write); it was never acknowledged;
- a failed write is undone before StoreError is raised, and a failed sync starts a new segment, since after it the
  kernel may have dropped pages (disk full, disk error);
- retention removes whole segments, oldest first: O(1), no rewriting; limits hold to within one segment.

Where to read next: segments.py for the format, index.py for reading, join.py for turning chunks into samples.
"""

import fcntl
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path

from tide_daemon.errors import StoreError
from tide_daemon.trainer.index import ChunkIndex
from tide_daemon.trainer.segments import (
    ChunkMeta,
    Entry,
    SegmentName,
    encode_record,
    list_segments,
    parse_name,
    read_body,
    record_head,
    scan,
    sync_folder,
)


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """Bounds of the store.

    Attributes:
        max_bytes: of all segments together.
        max_age_s: a segment goes when its newest record is older; a record lives at most an eighth longer.
        segment_bytes: a segment is closed when it reaches this; at most a quarter of max_bytes.
    """

    max_bytes: int
    max_age_s: float
    segment_bytes: int


@dataclass(slots=True)
class StoreCounters:
    """Counts since this process opened the store."""

    appended: int = 0
    duplicates: int = 0
    torn_bytes: int = 0
    dropped_chunks: int = 0
    dropped_segments: int = 0
    deleted_chunks: int = 0
    write_errors: int = 0


class SampleStore:
    """Owner of a store's folder. Calls block on the disk: use it from one thread at a time, not from the loop's."""

    def __init__(self, folder: Path, limits: StoreLimits, now: Callable[[], float]) -> None:
        """Open or create the store and recover it.

        Raises:
            StoreError: the folder cannot be used, or another process has it open.
        """
        self._folder = folder
        self._limits = replace(limits, segment_bytes=min(limits.segment_bytes, max(1, limits.max_bytes // 4)))
        self._now = now
        self._sizes: dict[SegmentName, int] = {}
        self._written_at: dict[SegmentName, float] = {}
        self._active: SegmentName | None = None
        self._file: FileIO | None = None
        self.index = ChunkIndex()
        self.counters = StoreCounters()
        self._next_sequence = 1
        self._began_at = now()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / "lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise StoreError(f"{folder} is in use by another trainer; give each its own state directory") from None
        except OSError as error:
            raise StoreError(f"cannot use {folder} as the sample store: {error}") from error
        try:
            self._recover()
        except OSError as error:
            self._lock.close()
            raise StoreError(f"cannot recover the sample store in {folder}: {error}") from error

    def _recover(self) -> None:
        present = list_segments(self._folder)
        for path in self._folder.iterdir():
            # Older generations and temporary files are what a deletion left when it was cut off.
            if path.suffix == ".tmp" or (path.suffix == ".seg" and parse_name(path.name) not in present):
                path.unlink()
        newest = max(present, key=lambda name: name.first_sequence, default=None)
        for name, path in present.items():
            entries, valid = scan(path, check_bodies=name == newest)
            torn = path.stat().st_size - valid
            if torn:
                self.counters.torn_bytes += torn
                os.truncate(path, valid)
            self._sizes[name] = valid
            for entry in entries:
                self.index.add(name, entry)
            last = entries[-1].meta.sequence if entries else name.first_sequence - 1
            self._next_sequence = max(self._next_sequence, last + 1)
            self._written_at[name] = entries[-1].meta.stored_at if entries else self._now()
        # A new segment at every start: an old one is never appended to, so its content is settled.
        self._rotate()

    @property
    def num_bytes(self) -> int:
        """Bytes of all segments."""
        return sum(self._sizes.values())

    @property
    def last_sequence(self) -> int:
        """Sequence of the newest record, 0 if there never was one."""
        return self._next_sequence - 1

    def append(self, chunks: Sequence[tuple[ChunkMeta, bytes]]) -> int:
        """Store chunks durably; duplicates of a (request, chunk index) are left out and counted.

        The metas' sequence and stored_at are filled in here. All or nothing: after an error the store is as before.

        Returns:
            How many were new.

        Raises:
            StoreError: the disk is full or failing. Nothing of this call is stored; call again later.
        """
        records: list[tuple[ChunkMeta, bytes, bytes]] = []
        seen: set[tuple[str, int]] = set()
        now = self._now()
        for meta, body in chunks:
            key = (meta.request_id, meta.chunk_index)
            if key in seen or self.index.has(*key):
                self.counters.duplicates += 1
                continue
            seen.add(key)
            filled = replace(meta, sequence=self._next_sequence + len(records), stored_at=now)
            records.append((filled, record_head(filled, body), body))
        if not records:
            return 0
        parts = [part for _, head, body in records for part in (head, body)]
        num_bytes = sum(map(len, parts))
        if num_bytes > self._limits.max_bytes // 2:
            limit = self._limits.max_bytes
            raise StoreError(f"{num_bytes} bytes at once do not fit a store of {limit} bytes; raise store_max_bytes")
        self.enforce(num_bytes)
        if self._file is None or self._active is None or self._sizes[self._active] >= self._limits.segment_bytes:
            self._rotate()
        assert self._active is not None
        start = self._write(parts)
        for meta, head, body in records:
            crc = int.from_bytes(head[16:20], "little")
            self.index.add(
                self._active, Entry(self._folder / str(self._active), start + len(head), len(body), crc, meta)
            )
            start += len(head) + len(body)
        self._next_sequence += len(records)
        self._written_at[self._active] = now
        self.counters.appended += len(records)
        return len(records)

    def _write(self, parts: Sequence[bytes]) -> int:
        """Append to the active segment, without copying, and sync; returns the offset at which `parts` begin."""
        assert self._file is not None and self._active is not None
        start = end = self._sizes[self._active]
        try:
            self._file.seek(start)
            for part in parts:
                rest = memoryview(part)
                while rest:  # a raw write stops short, without an error, when the disk fills up
                    rest = rest[self._file.write(rest) :]
                end += len(part)
            os.fdatasync(self._file.fileno())
        except OSError as error:
            self.counters.write_errors += 1
            self._abandon(start)
            raise StoreError(f"cannot write to the sample store in {self._folder}: {error}") from error
        self._sizes[self._active] = end
        return start

    def _abandon(self, valid_bytes: int) -> None:
        """Cut the active segment back to what is known good; the next append begins another one."""
        assert self._file is not None
        file, self._file = self._file, None
        try:
            os.ftruncate(file.fileno(), valid_bytes)
        except OSError:
            # Left for the next start: its scan ends where the checksums do, or finds duplicates.
            self.counters.torn_bytes += 1
        finally:
            file.close()

    def _rotate(self) -> None:
        """Begin a new segment named after the next sequence.

        Raises:
            StoreError: it cannot be created.
        """
        if self._file is not None:
            self._file.close()
            self._file = None
        name = SegmentName(self._next_sequence, 0)
        # A file of this name holds no record of the index: it would have moved the next sequence on.
        while (self._folder / str(name)).exists():
            name = SegmentName(name.first_sequence, name.generation + 1)
        try:
            self._file = (self._folder / str(name)).open("xb", buffering=0)
            sync_folder(self._folder)
        except OSError as error:
            self.counters.write_errors += 1
            raise StoreError(f"cannot write to the sample store in {self._folder}: {error}") from error
        self._active = name
        self._sizes[name] = 0
        self._written_at[name] = self._began_at = self._now()
        for empty in [other for other, size in self._sizes.items() if not size and other != name]:
            self._remove(empty)

    def enforce(self, incoming_bytes: int = 0) -> None:
        """Apply the limits: drop oldest segments until `incoming_bytes` more fit and none is too old."""
        oldest_allowed = self._now() - self._limits.max_age_s
        for name in sorted(self._sizes, key=lambda name: name.first_sequence):
            too_large = self.num_bytes + incoming_bytes > self._limits.max_bytes
            if not self._sizes[name] or not (too_large or self._written_at[name] < oldest_allowed):
                continue
            if name == self._active:
                self._rotate()
            self.counters.dropped_segments += 1
            self.counters.dropped_chunks += self._remove(name)
        is_old = self._now() - self._began_at > self._limits.max_age_s / 8
        if is_old and self._active is not None and self._sizes[self._active]:
            # Closed by age too, so that a slow trickle of records does not keep its first ones for ever.
            self._rotate()

    def _remove(self, name: SegmentName) -> int:
        (self._folder / str(name)).unlink(missing_ok=True)
        del self._sizes[name], self._written_at[name]
        return self.index.drop(name)

    def delete(self, request_id: str) -> int:
        """Remove a request's chunks from the disk now; returns how many.

        Raises:
            StoreError: a segment cannot be rewritten; call again.
        """
        request = self.index.requests.get(request_id)
        if request is None:
            return 0
        paths = {entry.path for entry in request.chunks.values()}
        num_before = self.counters.deleted_chunks
        for path in sorted(paths):
            name = parse_name(path.name)
            assert name is not None
            if name == self._active:
                self._rotate()
            try:
                self._rewrite_without(name, request_id)
            except OSError as error:
                raise StoreError(f"cannot delete {request_id} from {path}: {error}") from error
        return self.counters.deleted_chunks - num_before

    def _rewrite_without(self, name: SegmentName, request_id: str) -> None:
        kept = [entry for entry in self.index.segments[name] if entry.meta.request_id != request_id]
        self.counters.deleted_chunks += len(self.index.segments[name]) - len(kept)
        if not kept:
            self._remove(name)
            sync_folder(self._folder)
            return
        renewed = SegmentName(name.first_sequence, name.generation + 1)
        temporary = self._folder / f"{renewed}.tmp"
        with temporary.open("wb") as file:
            for entry in kept:
                file.write(encode_record(entry.meta, read_body(entry)))
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self._folder / str(renewed))
        sync_folder(self._folder)
        written_at = self._written_at[name]
        self._remove(name)
        entries, self._sizes[renewed] = scan(self._folder / str(renewed), check_bodies=False)
        self._written_at[renewed] = written_at
        for entry in entries:
            self.index.add(renewed, entry)

    def close(self) -> None:
        """Release the folder; what was appended is on the disk already."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._lock.close()

"""The sample store: what it acknowledged survives; what is too much, too old or torn goes, and is counted."""

import errno
import os
from pathlib import Path

import pytest

from tide_daemon.clock import ManualClock
from tide_daemon.errors import StoreError
from tide_daemon.trainer.index import StoreReader, is_heldout
from tide_daemon.trainer.segments import ChunkMeta
from tide_daemon.trainer.store import SampleStore, StoreLimits

LIMITS = StoreLimits(max_bytes=1_000_000, max_age_s=1000.0, segment_bytes=10_000)


def chunk(request: str, index: int = 0, *, last: bool = True, size: int = 1000) -> tuple[ChunkMeta, bytes]:
    meta = ChunkMeta(0, request, index, last, False, index * 10, 10, 6, 5.0, 0.0, "code")
    return meta, (f"{request}/{index}/".encode() * size)[:size]


def bodies(store: SampleStore, folder: Path, request: str) -> list[bytes]:
    reader = StoreReader(folder)
    reader.refresh()
    assert reader.index.requests.keys() == store.index.requests.keys()
    held = reader.index.requests.get(request)
    return list(reader.bodies(held)) if held is not None else []


def test_what_append_returned_from_is_there_after_a_reopen(tmp_path: Path) -> None:
    """Records, sequences and counts come back from the files alone."""
    clock = ManualClock()
    store = SampleStore(tmp_path, LIMITS, clock.time)
    assert store.append([chunk("a", 0, last=False), chunk("a", 1), chunk("b")]) == 3
    assert store.append([chunk("c")]) == 1
    store.close()
    again = SampleStore(tmp_path, LIMITS, clock.time)
    assert again.last_sequence == 4
    assert again.index.num_response == 24
    assert again.index.requests["a"].finished_sequence == 2
    assert bodies(again, tmp_path, "a") == [chunk("a", 0)[1], chunk("a", 1)[1]]
    again.append([chunk("d")])
    assert again.index.requests["d"].newest_sequence == 5


def test_the_same_chunk_twice_is_stored_once(tmp_path: Path) -> None:
    """A redelivery after a lost acknowledgement changes nothing, within a call, between calls, over a reopen."""
    store = SampleStore(tmp_path, LIMITS, ManualClock().time)
    assert store.append([chunk("a"), chunk("a")]) == 1
    assert store.append([chunk("a")]) == 0
    store.close()
    again = SampleStore(tmp_path, LIMITS, ManualClock().time)
    assert again.append([chunk("a")]) == 0
    assert (store.counters.duplicates, again.counters.duplicates) == (2, 1)


@pytest.mark.parametrize("cut", [1, 10, 25, 500, 1050])
def test_a_torn_tail_is_cut_off_and_counted(tmp_path: Path, cut: int) -> None:
    """A write that a kill interrupted was never acknowledged; everything before it stays."""
    store = SampleStore(tmp_path, LIMITS, ManualClock().time)
    store.append([chunk("a")])
    kept = store.num_bytes
    store.append([chunk("b")])
    (path,) = tmp_path.glob("*.seg")
    store.close()
    os.truncate(path, kept + cut)
    again = SampleStore(tmp_path, LIMITS, ManualClock().time)
    assert list(again.index.requests) == ["a"]
    assert again.counters.torn_bytes == cut
    assert again.append([chunk("b")]) == 1
    assert bodies(again, tmp_path, "b") == [chunk("b")[1]]


def test_a_flipped_byte_in_the_newest_segment_ends_the_scan(tmp_path: Path) -> None:
    """Nothing after a damaged record is taken for a record."""
    store = SampleStore(tmp_path, LIMITS, ManualClock().time)
    store.append([chunk("a"), chunk("b"), chunk("c")])
    (path,) = tmp_path.glob("*.seg")
    offset = store.index.requests["b"].chunks[0].offset
    store.close()
    data = bytearray(path.read_bytes())
    data[offset + 7] ^= 1
    path.write_bytes(data)
    again = SampleStore(tmp_path, LIMITS, ManualClock().time)
    assert list(again.index.requests) == ["a"]
    assert again.counters.torn_bytes > 1000


def test_too_many_bytes_drop_the_oldest_segments(tmp_path: Path) -> None:
    """The store never exceeds its bound and always keeps the newest."""
    limits = StoreLimits(max_bytes=50_000, max_age_s=1e9, segment_bytes=10_000)
    store = SampleStore(tmp_path, limits, ManualClock().time)
    for number in range(200):
        store.append([chunk(f"r{number}")])
        assert store.num_bytes <= limits.max_bytes
        assert sum(path.stat().st_size for path in tmp_path.glob("*.seg")) == store.num_bytes
    assert "r199" in store.index.requests
    assert "r0" not in store.index.requests
    assert store.counters.dropped_chunks == 200 - len(store.index.requests)
    assert len(store.index.requests) > 25


async def test_what_is_too_old_goes_even_when_nothing_new_comes(tmp_path: Path) -> None:
    """Age is enforced by the clock, and a slow trickle does not keep old records alive."""
    clock = ManualClock()
    store = SampleStore(tmp_path, LIMITS, clock.time)
    store.append([chunk("a")])
    for number in range(15):
        await clock.advance(100.0)
        store.append([chunk(f"b{number}")])
    assert "a" not in store.index.requests
    assert "b14" in store.index.requests
    await clock.advance(1200.0)
    store.enforce()
    assert store.index.requests == {}
    assert store.num_bytes == 0
    store.close()
    assert SampleStore(tmp_path, LIMITS, clock.time).last_sequence == 16


def test_one_batch_larger_than_the_store_is_refused(tmp_path: Path) -> None:
    """The message names the setting to change."""
    store = SampleStore(tmp_path, StoreLimits(10_000, 1e9, 1000), ManualClock().time)
    with pytest.raises(StoreError, match="store_max_bytes"):
        store.append([chunk("a", size=9000)])


@pytest.mark.parametrize("failing", ["write", "fdatasync"])
def test_a_full_disk_stores_nothing_and_recovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    """An append that fails leaves the store as it was, says why, and the next one succeeds."""
    store = SampleStore(tmp_path, LIMITS, ManualClock().time)
    store.append([chunk("a")])

    def full(*_args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        if failing == "fdatasync":
            patched.setattr(os, "fdatasync", full)
        else:
            store._file = _FailingFile(store._file)  # type: ignore[assignment]
        with pytest.raises(StoreError, match="No space left"):
            store.append([chunk("b"), chunk("c")])
    assert list(store.index.requests) == ["a"]
    assert store.append([chunk("b"), chunk("c")]) == 2
    store.close()
    again = SampleStore(tmp_path, LIMITS, ManualClock().time)
    assert sorted(again.index.requests) == ["a", "b", "c"]
    assert bodies(again, tmp_path, "c") == [chunk("c")[1]]


class _FailingFile:
    """A raw file on a disk that fills up after 100 bytes: first a short write, then the error."""

    def __init__(self, real: object) -> None:
        self._real = real
        self._room = 100

    def write(self, data: memoryview) -> int:
        if not self._room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._room = 0
        return self._real.write(data[:100])  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)


def test_deleting_a_request_leaves_no_byte_of_it(tmp_path: Path) -> None:
    """Its chunks vanish from every segment, others stay readable, and a reader that was open copes."""
    store = SampleStore(tmp_path, LIMITS, ManualClock().time)
    for number in range(30):
        store.append([chunk("gone", number, last=False), chunk(f"stays{number}")])
    reader = StoreReader(tmp_path)
    reader.refresh()
    assert store.delete("gone") == 30
    assert store.delete("gone") == 0
    assert not any(b"gone/" in path.read_bytes() for path in tmp_path.glob("*.seg"))
    assert list(reader.bodies(reader.index.requests["gone"])) == []
    reader.refresh()
    assert "gone" not in reader.index.requests
    for number in range(30):
        assert list(reader.bodies(reader.index.requests[f"stays{number}"])) == [chunk(f"stays{number}")[1]]
    store.close()
    assert len(SampleStore(tmp_path, LIMITS, ManualClock().time).index.requests) == 30


def test_a_deletion_cut_off_before_the_old_file_went_is_finished_at_start(tmp_path: Path) -> None:
    """Of two generations of a segment only the newer one counts."""
    store = SampleStore(tmp_path, LIMITS, ManualClock().time)
    store.append([chunk("gone"), chunk("stays")])
    (path,) = tmp_path.glob("*.seg")
    old = path.read_bytes()
    store.delete("gone")
    store.close()
    path.write_bytes(old)
    (tmp_path / "half.tmp").write_bytes(b"half")
    again = SampleStore(tmp_path, LIMITS, ManualClock().time)
    assert list(again.index.requests) == ["stays"]
    assert not path.exists()
    assert not (tmp_path / "half.tmp").exists()


def test_a_reader_follows_appends_and_retention(tmp_path: Path) -> None:
    """Refreshing picks up grown and new segments and forgets dropped ones."""
    store = SampleStore(tmp_path, StoreLimits(50_000, 1e9, 10_000), ManualClock().time)
    reader = StoreReader(tmp_path)
    for number in range(100):
        store.append([chunk(f"r{number}")])
        reader.refresh()
        assert reader.index.requests.keys() == store.index.requests.keys()


def test_a_second_owner_is_refused(tmp_path: Path) -> None:
    """Two trainers on one folder would tear each other's segments."""
    store = SampleStore(tmp_path, LIMITS, ManualClock().time)
    with pytest.raises(StoreError, match="another trainer"):
        SampleStore(tmp_path, LIMITS, ManualClock().time)
    store.close()
    SampleStore(tmp_path, LIMITS, ManualClock().time).close()


def test_heldout_is_a_stable_share_of_requests() -> None:
    """About the share asked for; a larger share holds out a superset; the hash never changes."""
    ids = [f"{number:032x}" for number in range(20_000)]
    small, large = {i for i in ids if is_heldout(i, 0.1)}, {i for i in ids if is_heldout(i, 0.3)}
    assert 0.09 < len(small) / len(ids) < 0.11
    assert small < large
    assert [n for n in range(60) if is_heldout(f"{n:032x}", 0.1)] == HELDOUT_OF_THE_FIRST_60
    assert not any(is_heldout(i, 0.0) for i in ids)
    assert all(is_heldout(i, 1.0) for i in ids)


HELDOUT_OF_THE_FIRST_60 = [15, 42, 49]

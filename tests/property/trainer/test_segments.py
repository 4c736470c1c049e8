"""Segment files survive anything that a disk may do to their tail."""

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st

from tide_daemon.trainer.segments import ChunkMeta, encode_record, read_body, scan

bodies = st.lists(st.binary(max_size=60), min_size=1, max_size=6)


def records(contents: list[bytes]) -> list[bytes]:
    return [
        encode_record(ChunkMeta(i + 1, f"{i:032x}", 0, True, False, 0, 3, 2, 1.0, 2.0, "w"), body)
        for i, body in enumerate(contents)
    ]


@given(bodies, st.data())
def test_a_cut_file_gives_exactly_its_whole_records(contents: list[bytes], data: st.DataObject) -> None:
    """Whatever the length at which a write stopped, the whole records before it are found, and nothing else."""
    encoded = records(contents)
    whole = b"".join(encoded)
    cut = data.draw(st.integers(0, len(whole)))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.seg"
        path.write_bytes(whole[:cut])
        entries, valid = scan(path, check_bodies=True)
        expected = []
        end = 0
        for body, record in zip(contents, encoded, strict=True):
            end += len(record)
            if end <= cut:
                expected.append(body)
        assert [read_body(entry) for entry in entries] == expected
        assert valid == sum(len(record) for record in encoded[: len(expected)])


@given(bodies, st.data())
def test_a_damaged_byte_is_never_read_as_content(contents: list[bytes], data: st.DataObject) -> None:
    """Records before the damage are read as they were; the damaged one and what follows are not."""
    encoded = records(contents)
    whole = bytearray(b"".join(encoded))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.seg"
        path.write_bytes(whole)
        entries, valid = scan(path, check_bodies=True)
        assert valid <= at
        assert [read_body(entry) for entry in entries] == contents[: len(entries)]


@given(st.binary(max_size=300))
def test_arbitrary_bytes_hold_no_record(junk: bytes) -> None:
    """A file that is no segment is empty, not an error."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.seg"
        path.write_bytes(junk)
        assert scan(path, check_bodies=True) == ([], 0)

"""What older peers sent is read for ever, what newer ones add does no harm, and a break is said in words."""

import dataclasses
import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from schemas.examples import EXAMPLES
from schemas.make import FOLDER
from tests.unit.wire.equality import assert_same
from tests.unit.wire.forge import envelope_of_frame, envelope_of_map
from tide_daemon.bus.topology import TopologyLimits, build_topology
from tide_daemon.errors import WireError
from tide_daemon.wire import kinds, subjects
from tide_daemon.wire.envelope import WIRE_VERSION, decode, decode_map, encode, read_header

ROOT = FOLDER.parent
FROZEN = dict(reversed(line.split()) for line in (FOLDER / "golden/frozen.sha256").read_text().splitlines())


def git(*words: str) -> bytes:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, timeout=60, check=False)
    if done.returncode:
        pytest.skip(f"git {words[0]} failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def test_golden_bytes_are_those_that_were_first_written() -> None:
    """A file that was rewritten would stand for no peer any more; a new one is added to frozen.sha256."""
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (FOLDER / "golden").glob("*.bin")}
    assert found == FROZEN


def test_every_message_that_any_commit_called_golden_is_still_read() -> None:
    """Of the whole history, where there is one: branches too, no name is gone and today's code reads every file."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: earlier golden files cannot be told; frozen.sha256 holds those of today")
    commits = git("log", "--format=%H", "--full-history", "--", "schemas/golden").decode().split()
    assert commits
    blobs = {
        (line.split()[3], line.split()[2])
        for commit in commits
        for line in git("ls-tree", commit, "schemas/golden/").decode().splitlines()
        if line.endswith(".bin")
    }
    assert len(blobs) >= 19
    for path, blob in blobs:
        assert Path(path).name in FROZEN, f"{path} is gone"
        decode(git("cat-file", "blob", blob))


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_entries_that_a_newer_peer_adds_are_ignored_at_every_depth(name: str) -> None:
    """In the record itself and in each record inside it, whatever their type; what is known stays the same."""
    record = EXAMPLES[name]
    header, entries = decode_map(encode(record))

    def grown(value: object) -> object:
        if isinstance(value, dict):
            plain_map = name == "decision" or not all(isinstance(key, str) for key in value)
            added = {} if plain_map else {"added_later": {"deep": [1, None, "x"]}, "added_too": b"\x00"}
            maps = ("refused", "numbers")  # their keys are data
            return {key: item if key in maps else grown(item) for key, item in value.items()} | added
        return [grown(item) for item in value] if isinstance(value, list) else value

    code = kinds.KIND_BY_NAME[header.kind].code
    assert_same(decode(encode(record)), decode(envelope_of_map(grown(entries), code)))


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_entries_that_an_older_peer_does_not_know_may_be_absent(name: str) -> None:
    """Every optional entry of the record taken away gives its default."""
    record = EXAMPLES[name]
    header, entries = decode_map(encode(record))
    optional = [f for f in dataclasses.fields(record) if f.default is not dataclasses.MISSING]
    if name == "hidden_chunk_withheld":
        pytest.skip("an older reader refuses it, see test_withheld.py")
    kept = {key: value for key, value in entries.items() if key not in {f.name for f in optional}}
    read = decode(envelope_of_map(kept, kinds.KIND_BY_NAME[header.kind].code))
    assert all(getattr(read, f.name) == f.default for f in optional)


def test_a_break_says_which_side_to_update() -> None:
    """Version and flags are looked at before anything else; a kind of a newer build is named by its number."""
    frame = encode(EXAMPLES["draft_claim"])[16:]
    newer = envelope_of_frame(frame, 400, version=WIRE_VERSION + 1)
    with pytest.raises(WireError, match=f"wire version is {WIRE_VERSION + 1}, this build reads {WIRE_VERSION}: update"):
        read_header(newer)
    with pytest.raises(WireError, match="flags are 0x0001, this build knows none: update the older side"):
        decode(envelope_of_frame(frame, 400, flags=1))
    with pytest.raises(WireError, match="kind 200 is not known to this build"):
        decode(envelope_of_frame(frame, 400, kind=200))


def test_a_break_has_subjects_and_streams_of_its_own() -> None:
    """The version byte and the subjects' version are one number, and no stream of ours takes the next one's."""
    assert f"tide.v{WIRE_VERSION}" == subjects.PREFIX
    following = subjects.hidden("m", "n").replace(f"v{WIRE_VERSION}", f"v{WIRE_VERSION + 1}")
    with pytest.raises(ValueError, match="no stream stores"):
        build_topology(TopologyLimits()).stream_of(following)
    with pytest.raises(WireError, match="is not a subject of"):
        subjects.parse(following)

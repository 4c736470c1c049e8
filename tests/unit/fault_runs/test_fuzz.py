"""The fuzzer finds what it is there to find, and nothing in our decoders within a few inputs."""

from pathlib import Path

from fault_runs import fuzz
from hypothesis import strategies as st


def test_an_error_that_is_not_allowed_is_a_find() -> None:
    """With the bytes and where it was raised; an allowed one is none."""

    def decode(data: bytes) -> object:
        if data[:1] == b"a":
            raise KeyError("oops")
        raise ValueError("as documented")

    inputs = st.sampled_from((b"a", b"b"))
    counts = {"one": 0}
    found = fuzz.turn(fuzz.Target("one", inputs, decode, (ValueError,)), counts)
    assert found is not None and found.data == b"a" and "oops" in found.text
    assert counts["one"] > 0
    assert fuzz.turn(fuzz.Target("one", inputs, decode, (ValueError, KeyError)), counts) is None


def test_every_decoder_has_a_turn(tmp_path: Path) -> None:
    """A second of it; `ops/faults --fuzz` takes longer."""
    lines: list[str] = []
    finds = fuzz.fuzz(0.5, lines.append)
    assert [(find.target, find.data.hex(), find.text) for find in finds] == []
    assert len(lines) == len(fuzz.targets(tmp_path)) + 1
    assert all(int(line.split()[-2]) > 0 for line in lines)

"""`ops/faults --fuzz`: every decoder and the control channel against bytes that hypothesis makes up, for a while.

A decoder may return a value or raise its one documented error; anything else is a find. What is fed in is random
bytes, good messages with damage anywhere, and envelopes whose checksums are right around bodies that are wrong.
Finds are printed with the bytes as hex, and kept in hypothesis's own database for the next run.
"""

import asyncio
import dataclasses
import json
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgpack
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fault_runs import hostile
from tests import trainer_samples
from tide_daemon.draft import delta
from tide_daemon.draft.config import DraftConfig
from tide_daemon.engine import control, ring_layout
from tide_daemon.errors import DraftError, EngineError, WireError
from tide_daemon.trainer import pipe, segments
from tide_daemon.wire import envelope, scan, subjects
from tide_daemon.wire.kinds import KIND_BY_CODE

EXAMPLES_A_TURN = 200
GOOD = tuple(envelope.encode(record) for record in hostile.examples(trainer_samples.SPEC, 1.0))
_SMALL = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text(max_size=20)
    | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Target:
    """One decoder: what is made up for it, how it is called, and what it may raise."""

    name: str
    inputs: st.SearchStrategy[bytes]
    decode: Callable[[bytes], object]
    allowed: tuple[type[Exception], ...]


@st.composite
def damaged(draw: st.DrawFn, good: tuple[bytes, ...]) -> bytes:
    """A good message with some bytes replaced, cut out or put in."""
    data = bytearray(draw(st.sampled_from(good)))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(("replace", "cut", "insert"))):
            case "replace" if data:
                data[place] = draw(st.integers(0, 255))
            case "cut":
                del data[place : place + draw(st.integers(1, 8))]
            case _:
                data[place:place] = draw(st.binary(max_size=8))
    return bytes(data)


@st.composite
def well_wrapped(draw: st.DrawFn) -> bytes:
    """An envelope with a true checksum and size around a map that has some fields of a real one, wrong ones too."""
    good = draw(st.sampled_from(GOOD))
    _, entries = envelope.decode_map(good)
    changed = {**entries, **draw(st.dictionaries(st.sampled_from(sorted(entries)), _SMALL, max_size=3))}
    return hostile.packed(good[5], msgpack.packb(changed, use_bin_type=True))


def targets(folder: Path) -> list[Target]:
    """Every decoder of bytes that another process or machine has written. `folder` is for those that read files."""
    wrapped = st.binary(max_size=200).flatmap(
        lambda body: st.sampled_from(sorted(KIND_BY_CODE)).map(lambda code: hostile.packed(code, body))
    )
    envelopes = st.binary(max_size=300) | damaged(GOOD) | wrapped | well_wrapped()
    frame = control.encode_frame({"v": 1, "command": "stats", "args": {}}, control.MAX_REQUEST_BYTES)
    record = segments.encode_record(_meta(), GOOD[0])
    header = ring_layout.pack_header(ring_layout.RingLayout(64, 96, 4), 5, 7).ljust(ring_layout.HEADER_BYTES, b"\0")
    piped = pipe.pack({"event": "progress", "job": 1, "step": 3})
    config = json.dumps(trainer_samples.CONFIG).encode()
    return [
        Target("envelope", envelopes, envelope.decode, (WireError,)),
        Target("envelope header", st.binary(max_size=40) | damaged(GOOD), envelope.read_header, (WireError,)),
        Target("msgpack structure", st.binary(max_size=300), _structure, (WireError,)),
        Target("subject", st.binary(max_size=80) | damaged(_SUBJECTS), _subject, (WireError,)),
        Target("draft payload", st.binary(max_size=300) | damaged((_payload(folder),)), _draft, (DraftError,)),
        Target("draft config", st.binary(max_size=200) | damaged((config,)), _draft_config, (DraftError,)),
        Target("control frame", st.binary(max_size=200) | damaged((frame,)), _control_frame, (EngineError,)),
        Target("ring header", st.binary(max_size=300) | damaged((header,)), _ring_header, (EngineError,)),
        Target("store segment", st.binary(max_size=300) | damaged((record, 2 * record)), _Segment(folder), ()),
        Target("worker's pipe", st.binary(max_size=200) | damaged((piped,)), _pipe, (pipe.PipeError,)),
    ]  # fmt: skip


@dataclass(slots=True)
class Find:
    """One input that a decoder did not survive."""

    target: str
    data: bytes
    text: str


def fuzz(seconds: float, told: Callable[[str], None]) -> list[Find]:
    """Feed all targets in turns until the time is over; at most one find for each target and kind of error."""
    finds: dict[tuple[str, str], Find] = {}
    with tempfile.TemporaryDirectory() as folder, _control_server(Path(folder)) as socket_path:
        all_targets = [*targets(Path(folder)), _channel(socket_path)]
        counts = dict.fromkeys((target.name for target in all_targets), 0)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for target in all_targets:
                found = turn(target, counts)
                if found is not None:
                    finds.setdefault((target.name, found.text.splitlines()[-1]), found)
    for name, count in counts.items():
        told(f"{name:<20} {count:>8} inputs")
    return list(finds.values())


def turn(target: Target, counts: dict[str, int]) -> Find | None:
    """Some inputs for one target."""
    found: list[Find] = []

    @settings(
        max_examples=EXAMPLES_A_TURN,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(target.inputs)
    def feed(data: bytes) -> None:
        counts[target.name] += 1
        try:
            target.decode(data)
        except target.allowed:
            pass
        except Exception:
            found.append(Find(target.name, data, traceback.format_exc()))

    feed()
    return found[0] if found else None


_SUBJECTS = tuple(
    subject.encode()
    for subject in (
        subjects.hidden("m", "node"),
        subjects.draft_part("m", 3, 4),
        subjects.draft_manifest("m", 3),
        subjects.target_rows("m", "norm", 0),
        subjects.control_server("m", "node"),
    )
)


def _structure(data: bytes) -> object:
    return scan.check_structure(data, 1000, 20)


def _draft(data: bytes) -> object:
    return delta.apply(data, None)


def _subject(data: bytes) -> object:
    return subjects.parse(data.decode("utf-8", "replace"))


def _draft_config(data: bytes) -> object:
    return DraftConfig.from_json(data.decode("utf-8", "replace"))


def _control_frame(data: bytes) -> object:
    length = control.frame_length(data[:4].ljust(4, b"\0"), control.MAX_REQUEST_BYTES)
    return control.decode_body(data[4 : 4 + length])


def _ring_header(data: bytes) -> object:
    return ring_layout.parse_header(data.ljust(ring_layout.HEADER_BYTES, b"\0"), 1 << 20)


def _pipe(data: bytes) -> object:
    async def read() -> object:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        return await pipe.read_async(reader)

    return asyncio.run(read())


class _Segment:
    """A segment file of the sample store: whatever is in it, the scan ends where it is not ours."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "0000000000000001-0000.seg"

    def __call__(self, data: bytes) -> object:
        self._path.write_bytes(data)
        return segments.scan(self._path, check_bodies=True)


def _meta() -> segments.ChunkMeta:
    values: Mapping[type, object] = {int: 1, str: "a", bool: True, float: 1.0}
    kinds = {"int": int, "str": str, "bool": bool, "float": float}
    return segments.ChunkMeta(*(values[kinds[str(f.type)] if isinstance(f.type, str) else f.type] for f in
                                dataclasses.fields(segments.ChunkMeta)))  # type: ignore[arg-type]  # fmt: skip


def _payload(folder: Path) -> bytes:
    from tide_daemon.draft import checkpoint
    from tide_daemon.draft.config import config_for_target

    config = config_for_target(trainer_samples.CONFIG, trainer_samples.LAYERS, 32)
    made = checkpoint.save(folder / "draft", config, checkpoint.placeholder(config).tensors)
    return delta.encode(made)


# The control channel as it is: a server in a thread, and whoever may open its socket.


@contextmanager
def _control_server(folder: Path) -> Iterator[Path]:
    path = folder / "ctl.sock"
    server = control.ControlServer(path, {"stats": lambda args: {"args": sorted(map(str, args))}})
    try:
        yield path
    finally:
        server.close()


def _channel(path: Path) -> Target:
    frame = control.encode_frame({"v": 1, "command": "stats", "args": {}}, control.MAX_REQUEST_BYTES)

    def talk(data: bytes) -> object:
        """Whatever was sent, the next honest caller is answered."""

        async def both() -> object:
            _, writer = await asyncio.open_unix_connection(str(path))
            writer.write(data)
            await writer.drain()
            writer.close()
            return await control.ControlClient(path).call("stats", 10.0)

        return asyncio.run(both())

    return Target("control channel", st.binary(max_size=200) | damaged((frame,)), talk, (ConnectionError,))

"""Rows become chunks: grouped, cut, ended, and refused when they cannot be right."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tide_daemon.engine.assemble import Assembler
from tide_daemon.engine.ring import Rows
from tide_daemon.engine.ring_layout import FLAG_GAP, FLAG_GENERATED, FLAG_LAST, FLAG_MARK, RingLayout
from tide_daemon.errors import EngineError
from tide_daemon.wire import envelope
from tide_daemon.wire.records import HiddenChunk, TargetSpec
from tide_daemon.wire.tensors import rows_per_chunk

SPEC = TargetSpec("m", "a" * 64, "b" * 64, (1, 2), 4, 1000)
LAYOUT = RingLayout(64, 8, 2)
BIG = 1 << 20
LABELS = ["", "code"]


def make(entries: list[dict[str, Any]]) -> Rows:
    """Rows from dicts with request, position and optionally flags, version, label."""
    rows = {name: np.zeros((len(entries), *shape[1:]), dtype) for name, (_, dtype, shape) in LAYOUT.columns.items()}
    for at, entry in enumerate(entries):
        rows["request"][at] = entry["request"]
        rows["position"][at] = entry["position"]
        rows["token_id"][at] = entry["position"] % 1000
        rows["next_token_id"][at] = (entry["position"] + 1) % 1000
        rows["aux"][at] = entry["position"]
        rows["flags"][at] = entry.get("flags", 0)
        rows["draft_version"][at] = entry.get("version", 0)
        rows["label"][at] = entry.get("label", 0)
        rows["captured_at"][at] = 100.0 + at
    return rows


def span(request: int, start: int, stop: int, **more: Any) -> list[dict[str, Any]]:
    return [{"request": request, "position": p, **more} for p in range(start, stop)]


def last(entries: list[dict[str, Any]], flag: int = FLAG_LAST) -> list[dict[str, Any]]:
    entries[-1]["flags"] = entries[-1].get("flags", 0) | flag
    return entries


@pytest.fixture
def assembler() -> Assembler:
    return Assembler(SPEC, "node", "bf16", max_age_s=1.0, idle_s=10.0, max_open=3)


def brief(chunk: HiddenChunk) -> tuple[int, int, int, bool, bool]:
    return (chunk.chunk_index, chunk.first_position, len(chunk.token_ids), chunk.last, chunk.incomplete)


def test_one_request_in_one_chunk(assembler: Assembler) -> None:
    rows = make(last(span(1, 0, 3, label=1) + span(1, 3, 6, flags=FLAG_GENERATED, label=1)))
    assembler.add(rows, LABELS, 0.0, BIG)
    (chunk,) = assembler.take_ready()
    assert brief(chunk) == (0, 0, 6, True, False)
    assert chunk.token_ids.tolist() == [0, 1, 2, 3, 4, 5]
    assert chunk.loss_mask.tolist() == [0, 0, 0, 1, 1, 1]
    assert chunk.next_token_id == 6
    assert chunk.aux[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert (chunk.workload, chunk.captured_at, len(chunk.request_id)) == ("code", 100.0, 32)
    assert envelope.decode(envelope.encode(chunk)).request_id == chunk.request_id


def test_interleaved_requests_are_separated(assembler: Assembler) -> None:
    entries = [e for p in range(4) for r in (1, 2) for e in span(r, p, p + 1)]
    entries[-1]["flags"] = entries[-2]["flags"] = FLAG_LAST
    assembler.add(make(entries), LABELS, 0.0, BIG)
    chunks = assembler.take_ready()
    assert [brief(c) for c in chunks] == [(0, 0, 4, True, False)] * 2
    assert len({c.request_id for c in chunks}) == 2


def test_chunks_fit_the_message(assembler: Assembler) -> None:
    most = rows_per_chunk(5000, 8, 2, "bf16")
    assembler.add(make(last(span(1, 0, 2 * most + 1))), LABELS, 0.0, 5000)
    chunks = assembler.take_ready()
    assert [brief(c) for c in chunks] == [
        (0, 0, most, False, False),
        (1, most, most, False, False),
        (2, 2 * most, 1, True, False),
    ]
    assert chunks[0].next_token_id == chunks[1].token_ids[0]
    assert all(len(envelope.encode(c)) <= 5000 for c in chunks)


def test_gap_cuts_and_marks_from_there_on(assembler: Assembler) -> None:
    entries = span(1, 0, 3) + span(1, 7, 9)
    entries[3]["flags"] = FLAG_GAP
    assembler.add(make(last(entries)), LABELS, 0.0, BIG)
    assert [brief(c) for c in assembler.take_ready()] == [(0, 0, 3, False, False), (1, 7, 2, True, True)]


def test_jump_in_position_without_a_flag_is_a_gap_too(assembler: Assembler) -> None:
    assembler.add(make(span(1, 0, 3)), LABELS, 0.0, BIG)
    assembler.add(make(last(span(1, 5, 6))), LABELS, 0.0, BIG)
    assert [brief(c) for c in assembler.take_ready()] == [(0, 0, 3, False, False), (1, 5, 1, True, True)]


def test_version_change_cuts(assembler: Assembler) -> None:
    assembler.add(make(last(span(1, 0, 2, version=1) + span(1, 2, 4, version=2))), LABELS, 0.0, BIG)
    chunks = assembler.take_ready()
    assert [(c.draft_version, c.incomplete) for c in chunks] == [(1, False), (2, False)]


def test_marker_ends_a_request_without_a_row(assembler: Assembler) -> None:
    assembler.add(make(span(1, 0, 2)), LABELS, 0.0, BIG)
    assembler.add(make([{"request": 1, "position": 0, "flags": FLAG_MARK | FLAG_LAST}]), LABELS, 0.0, BIG)
    assert [brief(c) for c in assembler.take_ready()] == [(0, 0, 2, True, False)]


def test_age_flushes_and_silence_ends(assembler: Assembler) -> None:
    assembler.add(make(span(1, 0, 2)), LABELS, 0.0, BIG)
    assembler.flush_old(0.5)
    assert assembler.take_ready() == []
    assembler.flush_old(2.0)
    assert [brief(c) for c in assembler.take_ready()] == [(0, 0, 2, False, False)]
    assembler.flush_old(11.0)
    (end,) = assembler.take_ready()
    assert brief(end) == (1, 2, 0, True, True)
    assert len(envelope.decode(envelope.encode(end)).token_ids) == 0


def test_open_requests_are_bounded(assembler: Assembler) -> None:
    for request in range(5):
        assembler.add(make(span(request, 0, 1)), LABELS, float(request), BIG)
    assert [(c.last, c.incomplete) for c in assembler.take_ready()] == [(True, True)] * 2


def test_end_all(assembler: Assembler) -> None:
    assembler.add(make(span(1, 0, 2)), LABELS, 0.0, BIG)
    assembler.end_all()
    assert [brief(c) for c in assembler.take_ready()] == [(0, 0, 2, True, True)]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("token_id", 1000),
        ("token_id", -1),
        ("next_token_id", 1000),
        ("position", -5),
        ("position", 1 << 30),
        ("flags", 64),
        ("label", 2),
        ("topk_ids", 1000),
        ("draft_version", -1),
        ("captured_at", np.inf),
        ("topk_logprobs", np.nan),
    ],
)
def test_insane_rows_are_refused(assembler: Assembler, column: str, value: float) -> None:
    rows = make(span(1, 0, 3))
    rows[column][1] = value
    with pytest.raises(EngineError, match="not valid rows"):
        assembler.add(rows, LABELS, 0.0, BIG)
    assert assembler.num_refused == 3
    assert assembler.take_ready() == []


def numbers(chunks: list[HiddenChunk]) -> list[int]:
    return [chunk.chunk_index for chunk in chunks]


def test_one_that_was_ended_for_room_goes_on_with_other_numbers(assembler: Assembler) -> None:
    """What has the number of a chunk that was stored counts as that chunk again, and is gone."""
    for position in range(3):
        for request in range(4):
            assembler.add(make(span(request, position, position + 1)), LABELS, 0.0, BIG)
    assembler.end_all()
    ready = assembler.take_ready()
    assert len({(c.request_id, c.chunk_index) for c in ready}) == len(ready) == 12


def test_one_that_was_silent_goes_on_with_other_numbers(assembler: Assembler) -> None:
    """Also where every row had a chunk of its own and the end one without rows."""
    assembler.add(make(span(1, 0, 1)), LABELS, 0.0, BIG)
    for now in (2.0, 13.0):
        assembler.flush_old(now)
    assembler.add(make(last(span(1, 1, 3))), LABELS, 14.0, BIG)
    ready = assembler.take_ready()
    assert [len(c.token_ids) for c in ready] == [1, 0, 2]
    assert numbers(ready) == sorted(set(numbers(ready)))


def test_another_daemon_goes_on_with_other_numbers(assembler: Assembler) -> None:
    """The engine outlives a daemon that was killed, in the middle of its requests."""
    assembler.add(make(span(1, 0, 3)), LABELS, 0.0, BIG)
    assembler.flush_old(2.0)
    adopting = Assembler(SPEC, "node", "bf16", max_age_s=1.0)
    adopting.add(make(last(span(1, 3, 5))), LABELS, 0.0, BIG)
    ready = assembler.take_ready() + adopting.take_ready()
    assert numbers(ready) == sorted(set(numbers(ready)))
    assert [c.first_position for c in ready] == [0, 3]


def test_a_mark_alone_is_no_chunk(assembler: Assembler) -> None:
    """The end of a request whose rows all went to a daemon before this one."""
    assembler.add(make([{"request": 1, "position": 7, "flags": FLAG_MARK | FLAG_LAST}]), LABELS, 0.0, BIG)
    assert assembler.take_ready() == []


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_numbers_are_never_used_twice_and_grow_with_positions(data: st.DataObject) -> None:
    """However often a request is ended and begins again: for room, for silence, for another daemon."""
    assembler = Assembler(SPEC, "node", "bf16", max_age_s=1.0, idle_s=3.0, max_open=2)
    ready, at, now = list[HiddenChunk](), dict.fromkeys(range(3), 0), 0.0
    for _ in range(data.draw(st.integers(1, 40))):
        now += data.draw(st.sampled_from((0.0, 0.5, 2.0, 4.0)))
        match data.draw(st.sampled_from(("rows", "rows", "rows", "age", "killed"))):
            case "rows":
                request = data.draw(st.integers(0, 2))
                start = at[request] + data.draw(st.sampled_from((0, 0, 0, 5)))
                at[request] = start + data.draw(st.integers(1, 4))
                version = data.draw(st.integers(1, 2))
                assembler.add(make(span(request, start, at[request], version=version)), LABELS, now, 3000)
            case "age":
                assembler.flush_old(now)
            case "killed":
                ready += assembler.take_ready()
                assembler = Assembler(SPEC, "node", "bf16", max_age_s=1.0, idle_s=3.0, max_open=2)
    assembler.end_all()
    of: dict[str, list[HiddenChunk]] = {}
    for chunk in ready + assembler.take_ready():
        of.setdefault(chunk.request_id, []).append(chunk)
    for chunks in of.values():
        assert numbers(chunks) == sorted(set(numbers(chunks)))
        positions = [chunk.first_position for chunk in chunks]
        assert positions == sorted(positions)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_row_arrives_once_however_it_is_split(data: st.DataObject) -> None:
    """Whatever the order of requests and the sizes of the takes, each request's chunks join to its rows."""
    assembler = Assembler(SPEC, "node", "bf16", max_open=100)
    lengths = data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=5))
    streams = {r: last(span(r, 0, n)) for r, n in enumerate(lengths)}
    entries = []
    while streams:
        request = data.draw(st.sampled_from(sorted(streams)))
        count = data.draw(st.integers(1, 7))
        entries += streams[request][:count]
        streams[request] = streams[request][count:]
        if not streams[request]:
            del streams[request]
    while entries:
        count = data.draw(st.integers(1, 20))
        assembler.add(make(entries[:count]), LABELS, 0.0, 3000)
        entries = entries[count:]
    joined: dict[str, list[int]] = {}
    for chunk in assembler.take_ready():
        rows = joined.setdefault(chunk.request_id, [])
        assert chunk.first_position == len(rows)
        assert not chunk.incomplete
        rows += chunk.token_ids.tolist()
    assert sorted(joined.values()) == sorted(list(range(n)) for n in lengths)

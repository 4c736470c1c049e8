"""The tap on simulated batches: exactly the accepted rows, in every way a batch can go."""

from pathlib import Path

from tests.unit.engine.tap_batches import TOPK, VOCAB, WIDTH, Req, decode, prefill, states, values, verify
from tide_daemon.engine.port import CaptureSettings
from tide_daemon.engine.ring import RingReader, RingWriter
from tide_daemon.engine.ring_layout import (
    FLAG_GAP,
    FLAG_GENERATED,
    FLAG_LAST,
    FLAG_TOPK,
    RingLayout,
)
from tide_daemon.engine.sglang.staged import Staged
from tide_daemon.engine.sglang.tap import Tap


def test_accepted_rows_of_prefill_and_verification(tap: Tap, ring: tuple[RingWriter, RingReader]) -> None:
    """Prompt rows, then the first `accept_length` rows of each block; token, next token, mask and top-k line up."""
    a, b = Req([10, 11, 12], "a"), Req([20, 21], "b")
    prefill(tap, [a, b], [0, 0], [3, 2], [13, 22])
    verify(tap, [a, b], [[14, 15], [23]], width=4)
    verify(tap, [a, b], [[16], [24, 25, 26, 27]], width=4, finish=(0, 1))
    rows = ring[1].take(100)
    mine = [i for i in range(len(rows["position"])) if (rows["request"][i] == rows["request"][0]).all()]
    got = {name: column[mine] for name, column in rows.items()}
    assert got["position"].tolist() == [0, 1, 2, 3, 4, 5]
    assert got["token_id"].tolist() == [10, 11, 12, 13, 14, 15]
    assert got["next_token_id"].tolist() == [11, 12, 13, 14, 15, 16]
    assert ((got["flags"] & FLAG_GENERATED) != 0).tolist() == [False] * 3 + [True] * 3
    assert ((got["flags"] & FLAG_TOPK) != 0).tolist() == [False] * 2 + [True] * 4
    assert got["topk_ids"][:, 0].tolist() == [-1, -1, 13, 14, 15, 16]
    assert values(got) == [0, 1, 2, 100, 101, 100]
    assert ((got["flags"] & FLAG_LAST) != 0).tolist() == [False] * 5 + [True]
    other = [i for i in range(len(rows["position"])) if i not in mine]
    assert rows["token_id"][other].tolist() == [20, 21, 22, 23, 24, 25, 26]
    assert values({"aux": rows["aux"][other]}) == [3, 4, 104, 104, 105, 106, 107]


def test_plain_steps_are_written_together(tap: Tap, ring: tuple[RingWriter, RingReader]) -> None:
    """Nothing of a few plain steps is in the ring; once a request ends all of it is, as if each was written alone."""
    a, b = Req([1, 2], "a"), Req([5], "b")
    prefill(tap, [a, b], [0, 0], [2, 1], [3, 6])
    assert len(ring[1].take(100)["position"]) == 3
    tap.draft_version = 1
    for step in range(3):
        decode(tap, [a, b], [20 + step, 30 + step], start=100 + 2 * step)
    assert ring[1].waiting() == 0
    tap.draft_version = 2
    decode(tap, [a, b], [23, 33], start=106, finish=(1,))
    rows = ring[1].take(100)
    assert rows["position"].tolist() == [2, 1, 3, 2, 4, 3, 5, 4]
    assert rows["token_id"].tolist() == [3, 6, 20, 30, 21, 31, 22, 32]
    assert rows["next_token_id"].tolist() == [20, 30, 21, 31, 22, 32, 23, 33]
    assert rows["topk_ids"][:, 0].tolist() == [20, 30, 21, 31, 22, 32, 23, 33]
    assert values(rows) == [100, 101, 102, 103, 104, 105, 106, 107]
    assert rows["draft_version"].tolist() == [1] * 6 + [2] * 2
    assert ((rows["flags"] & FLAG_LAST) != 0).tolist() == [False] * 7 + [True]


def test_kept_steps_go_before_a_prefill_a_drafting_step_and_at_the_limit(
    tap: Tap, ring: tuple[RingWriter, RingReader]
) -> None:
    a, b = Req([1, 2], "a"), Req([5], "b")
    prefill(tap, [a], [0], [2], [3])
    decode(tap, [a], [4], start=100)
    prefill(tap, [b], [0], [1], [6])
    assert ring[1].take(100)["position"].tolist() == [0, 1, 2, 0]
    decode(tap, [a, b], [5, 7], start=102)
    verify(tap, [a, b], [[6, 7], [8]], width=2)
    assert ring[1].take(100)["position"].tolist() == [3, 1, 4, 5, 2]
    for step in range(8):
        decode(tap, [a, b], [40 + step, 50 + step], start=110 + 2 * step)
    assert ring[1].waiting() == 16
    decode(tap, [a, b], [60, 61], start=130)
    tap.flush()
    assert ring[1].waiting() == 18


def test_a_window_ends_among_kept_steps(tap: Tap, ring: tuple[RingWriter, RingReader]) -> None:
    tap.settings = CaptureSettings(True, max_rows=4)
    a = Req([1, 2], "a")
    prefill(tap, [a], [0], [2], [3])
    for step in range(8):
        decode(tap, [a], [20 + step], start=100 + step)
    rows = ring[1].take(100)
    assert rows["position"].tolist() == [0, 1, 2, 3]
    assert rows["flags"][-1] & FLAG_LAST


def test_tokens_after_a_stop_are_not_rows(tap: Tap, ring: tuple[RingWriter, RingReader]) -> None:
    """A stop token inside an accepted run cuts it there."""
    req = Req([1, 2])
    prefill(tap, [req], [0], [2], [3])
    req.finished_len = 3
    verify(tap, [req], [[4, 5, 6, 7]], width=4, finish=(0,))
    rows = ring[1].take(100)
    assert rows["token_id"].tolist() == [1, 2, 3, 4]
    assert rows["next_token_id"].tolist() == [2, 3, 4, 5]
    assert rows["flags"][-1] & FLAG_LAST


def test_cached_prefix_is_absent_and_chunks_join(tap: Tap, ring: tuple[RingWriter, RingReader]) -> None:
    req = Req([1, 2, 3, 4, 5, 6])
    prefill(tap, [req], [2], [3], [None])
    prefill(tap, [req], [5], [1], [7])
    rows = ring[1].take(100)
    assert rows["position"].tolist() == [2, 3, 4, 5]
    assert rows["next_token_id"].tolist() == [4, 5, 6, 7]


def test_retracted_request_is_not_captured_twice(tap: Tap, ring: tuple[RingWriter, RingReader]) -> None:
    """Its prefill runs again over prompt and output; only what is new is written."""
    req = Req([1, 2])
    prefill(tap, [req], [0], [2], [3])
    verify(tap, [req], [[4]], width=2)
    prefill(tap, [req], [0], [4], [5])
    rows = ring[1].take(100)
    assert rows["position"].tolist() == [0, 1, 2, 3]
    assert rows["token_id"].tolist() == [1, 2, 3, 4]
    assert ((rows["flags"] & FLAG_GENERATED) != 0).tolist() == [False, False, True, True]
    assert not (rows["flags"] & FLAG_GAP).any()


def test_full_ring_drops_marks_and_counts(tmp_path: Path) -> None:
    """Rows that do not fit are dropped; the request goes on with a gap, positions stay true."""
    writer = RingWriter(tmp_path / "f.ring", RingLayout(4, WIDTH, TOPK))
    tap = Tap(writer, CaptureSettings(True), VOCAB)
    req = Req([1, 2, 3])
    with RingReader(tmp_path / "f.ring") as reader:
        prefill(tap, [req], [0], [3], [4])
        verify(tap, [req], [[5, 6]], width=3)
        verify(tap, [req], [[7]], width=3)
        assert writer.num_dropped == 2
        assert reader.take(100)["position"].tolist() == [0, 1, 2, 3]
        verify(tap, [req], [[8]], width=3)
        rows = reader.take(100)
        assert rows["position"].tolist() == [6]
        assert rows["flags"][0] & FLAG_GAP
        verify(tap, [req], [[9]], width=3)
        assert not reader.take(100)["flags"][0] & FLAG_GAP


def test_altered_logits_give_no_top_k(tap: Tap, ring: tuple[RingWriter, RingReader]) -> None:
    req = Req([1, 2], frequency_penalty=0.5)
    prefill(tap, [req], [0], [2], [3])
    verify(tap, [req], [[4]], width=1)
    rows = ring[1].take(100)
    assert (rows["topk_ids"] == -1).all()
    assert not (rows["flags"] & FLAG_TOPK).any()


def test_states_that_are_still_on_their_way_wait_in_order(tap: Tap, ring: tuple[RingWriter, RingReader]) -> None:
    """As on a GPU: nothing is waited for; rows enter the ring in order once the copies are done."""
    ready = [False]
    released: list[int] = []
    req = Req([1, 2])
    req.output_ids.append(3)
    first = Staged(states(2), None, 0, [0], [2], is_ready=lambda: ready[0], release=lambda: released.append(1))
    tap.commit_prefill([req], first)
    verify(tap, [req], [[4]], width=1)
    assert ring[1].waiting() == 0
    ready[0] = True
    tap.flush()
    assert ring[1].take(100)["position"].tolist() == [0, 1, 2]
    assert released == [1]


def test_too_many_batches_on_their_way_cost_rows_not_time(tap: Tap, ring: tuple[RingWriter, RingReader]) -> None:
    ready = [False]
    req = Req([1, 2])
    req.output_ids.append(3)
    for _ in range(12):
        before = [len(req.output_ids)]
        req.output_ids.append(9)
        tap.commit_verify([req], Staged(states(1), None, 1, [], [], is_ready=lambda: ready[0]), before)
    ready[0] = True
    tap.flush()
    assert ring[1].waiting() == 8
    assert ring[0].num_dropped == 4
    verify(tap, [req], [[10]], width=1)
    assert ring[1].take(100)["flags"][-1] & FLAG_GAP


def test_batch_that_was_not_staged_is_a_gap(tap: Tap, ring: tuple[RingWriter, RingReader]) -> None:
    req = Req([1, 2])
    prefill(tap, [req], [0], [2], [3])
    req.output_ids.extend([4, 5])
    verify(tap, [req], [[6]], width=1)
    rows = ring[1].take(100)
    assert rows["position"].tolist() == [0, 1, 4]
    assert rows["flags"][2] & FLAG_GAP
    assert ring[0].num_dropped == 2


def test_no_top_k_at_all(tmp_path: Path) -> None:
    """k = 0 is allowed."""
    writer = RingWriter(tmp_path / "z.ring", RingLayout(16, WIDTH, 0))
    tap = Tap(writer, CaptureSettings(True), VOCAB)
    with RingReader(tmp_path / "z.ring") as reader:
        prefill(tap, [Req([1, 2])], [0], [2], [3])
        assert reader.take(10)["topk_ids"].shape == (2, 0)

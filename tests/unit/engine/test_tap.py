"""The tap on simulated batches: exactly the accepted rows, in every way a request can go."""

from array import array
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tide_daemon.engine.port import CaptureSettings
from tide_daemon.engine.ring import RingReader, RingWriter, Rows
from tide_daemon.engine.ring_layout import (
    FLAG_GAP,
    FLAG_GENERATED,
    FLAG_LAST,
    FLAG_MARK,
    FLAG_TOPK,
    MAX_LABELS,
    RingLayout,
)
from tide_daemon.engine.sglang.prefixes import COMMON, PREFIX_TOKENS, PromptPrefixes
from tide_daemon.engine.sglang.requests import ATTRIBUTE, OPTED_OUT, chosen
from tide_daemon.engine.sglang.staged import Staged
from tide_daemon.engine.sglang.tap import Tap

VOCAB = 300
WIDTH = 4
TOPK = 2


class Params(SimpleNamespace):
    def __init__(self, **more: Any) -> None:
        plain = {"custom_params": None, "frequency_penalty": 0.0, "presence_penalty": 0.0, "repetition_penalty": 1.0}
        super().__init__(**(plain | {"min_new_tokens": 0, "logit_bias": None} | more))


class Req:
    """What the tap reads of SGLang's Req."""

    def __init__(self, prompt: list[int], rid: str = "r", **params: Any) -> None:
        self.rid = rid
        self.origin_input_ids = array("q", prompt)
        self.output_ids = array("q")
        self.finished_len: int | None = None
        self.sampling_params = Params(**params)
        self.multimodal_inputs = self.input_embeds = self.grammar = self.custom_logit_processor = None
        self.is_finished = False

    def finished(self) -> bool:
        return self.is_finished


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[tuple[RingWriter, RingReader]]:
    writer = RingWriter(tmp_path / "t.ring", RingLayout(64, WIDTH, TOPK))
    reader = RingReader(tmp_path / "t.ring")
    yield writer, reader
    reader.close()


@pytest.fixture
def tap(ring: tuple[RingWriter, RingReader]) -> Tap:
    return Tap(ring[0], CaptureSettings(True), VOCAB)


def states(rows: int, start: int = 0) -> torch.Tensor:
    """Row r holds the number start + r, exact in bf16."""
    return (torch.arange(start, start + rows).float()[:, None]).expand(rows, WIDTH).contiguous()


def values(rows: Rows) -> list[int]:
    """What `states` put there."""
    return torch.from_numpy(rows["aux"].view(np.int16)).view(torch.bfloat16)[:, 0].int().tolist()


def prefill(tap: Tap, reqs: list[Req], prefix: list[int], extend: list[int], first: list[int | None]) -> None:
    """A prefill batch; each request gets its first token, None for a chunk in the middle."""
    rows = sum(extend)
    logits = torch.zeros(len(reqs), VOCAB)
    for index, (req, token) in enumerate(zip(reqs, first, strict=True)):
        if token is not None:
            req.output_ids.append(token)
            logits[index, token] = 5.0
    tap.commit_prefill(reqs, Staged(states(rows), logits, 0, prefix, extend))


def verify(tap: Tap, reqs: list[Req], accepted: list[list[int]], width: int, finish: tuple[int, ...] = ()) -> None:
    """A verification of `width` rows a request that added these tokens."""
    before = [len(req.output_ids) for req in reqs]
    logits = torch.zeros(len(reqs) * width, VOCAB)
    for index, (req, tokens) in enumerate(zip(reqs, accepted, strict=True)):
        for row, token in enumerate(tokens):
            logits[index * width + row, token] = 5.0
        req.output_ids.extend(tokens)
        req.is_finished = index in finish
    tap.commit_verify(reqs, Staged(states(len(reqs) * width, 100), logits, width, [], []), before)


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


def decode(tap: Tap, reqs: list[Req], tokens: list[int], start: int, finish: tuple[int, ...] = ()) -> None:
    """A step of plain decoding, staged as the runtime does; its states are start, start + 1, ..."""
    logits = torch.zeros(len(reqs), VOCAB)
    logits[torch.arange(len(reqs)), torch.tensor(tokens)] = 5.0
    staged = tap.stage(reqs, Staged(states(len(reqs), start), logits, 1, [], []))
    before = [len(req.output_ids) for req in reqs]
    for index, (req, token) in enumerate(zip(reqs, tokens, strict=True)):
        req.output_ids.append(token)
        req.is_finished = index in finish
    tap.commit_verify(reqs, staged, before)


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


def test_opted_out_and_unsampled_requests_leave_nothing(tap: Tap, ring: tuple[RingWriter, RingReader]) -> None:
    out = Req([1, 2], custom_params={"tide": "off"})
    prefill(tap, [out], [0], [2], [3])
    verify(tap, [out], [[4]], width=1, finish=(0,))
    assert ring[1].waiting() == 0
    assert tap.num_opted_out == 1
    assert out.__dict__[ATTRIBUTE] == OPTED_OUT
    tap.settings = CaptureSettings(True, sample_rate=0.0)
    prefill(tap, [Req([1, 2])], [0], [2], [3])
    health = Req([1, 2], rid="HEALTH_CHECK_1")
    tap.settings = CaptureSettings(True)
    prefill(tap, [health], [0], [2], [3])
    assert ring[1].waiting() == 0


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


def test_window_and_labels(tap: Tap, ring: tuple[RingWriter, RingReader]) -> None:
    tap.settings = CaptureSettings(True, 1.0, 4)
    req = Req([1, 2, 3], custom_params={"tide_workload": "code"})
    bad = Req([1, 2, 3], custom_params={"tide_workload": "no spaces, please"})
    prefill(tap, [req, bad], [0, 0], [3, 3], [4, 4])
    for token in (5, 6, 7):
        verify(tap, [req, bad], [[token], [token]], width=1)
    rows = ring[1].take(100)
    assert len(rows["position"]) == 8
    assert rows["position"].max() == 3
    assert [ring[1].labels()[n] for n in sorted(set(rows["label"].tolist()))] == ["", "code"]
    assert np.sum((rows["flags"] & FLAG_LAST) != 0) == 2


def test_a_workload_may_have_a_rate_of_its_own(tap: Tap, ring: tuple[RingWriter, RingReader]) -> None:
    """Nothing is captured but the preferred one."""
    tap.settings = CaptureSettings(True, 0.0, 0, ("code",), 1.0)
    code = Req([1, 2, 3], custom_params={"tide_workload": "code"})
    prefill(tap, [Req([4, 5, 6]), code], [0, 0], [3, 3], [7, 8])
    assert ring[1].take(100)["token_id"].tolist() == [1, 2, 3]


def test_an_excluded_workload_leaves_nothing_whatever_is_preferred(
    tap: Tap, ring: tuple[RingWriter, RingReader]
) -> None:
    """It counts as opted out; others are captured."""
    tap.settings = CaptureSettings(True, 1.0, 0, ("medical",), 1.0, ("medical",))
    medical = Req([1, 2, 3], custom_params={"tide_workload": "medical"})
    prefill(tap, [medical, Req([4, 5, 6])], [0, 0], [3, 3], [7, 8])
    assert ring[1].take(100)["token_id"].tolist() == [4, 5, 6]
    assert tap.num_opted_out == 1 and medical.__dict__[ATTRIBUTE] == OPTED_OUT


def test_a_client_may_choose_its_samples_id(tap: Tap) -> None:
    """32 hex digits are taken as they are, so that it can be forgotten later; else a random id."""
    wish = "00112233445566778899aabbccddeeff"
    named = tap.tracked(Req([1, 2], custom_params={"tide_request": wish}))
    assert named is not None and named.key.tobytes().hex() == wish
    ids = set()
    for number, other in enumerate(("", wish[:-1], wish.upper(), wish + "0", 7, None)):
        tracked = tap.tracked(Req([1, 2], rid=f"x{number}", custom_params={"tide_request": other}))
        assert tracked is not None
        ids.add(tracked.key.tobytes().hex())
    assert len(ids) == 6 and wish not in ids


def test_prompts_that_begin_alike_are_a_workload(ring: tuple[RingWriter, RingReader]) -> None:
    """From the eighth on, by the same name everywhere; what the client says goes before; opted out counts nowhere."""
    tap = Tap(ring[0], CaptureSettings(True, 0.0), VOCAB, PromptPrefixes())
    system = list(range(PREFIX_TOKENS))
    reqs = [Req([*system, 100 + number], rid=f"r{number}") for number in range(COMMON)]
    named = Req([*system, 99], custom_params={"tide_workload": "code"})
    silent = [Req([*system, 98], custom_params={"tide": "off"}) for _ in range(20)]
    for req in [*silent, *reqs[:-1], named]:
        assert tap.tracked(req) is None
    tap.settings = CaptureSettings(True)
    last = tap.tracked(reqs[-1])
    assert last is not None and last.workload.startswith("prompt-")
    again = Tap(ring[0], CaptureSettings(True), VOCAB, PromptPrefixes())
    found = [again.tracked(Req([*system, number], rid=f"s{number}")) for number in range(COMMON)]
    assert [each.workload for each in found if each is not None] == [""] * (COMMON - 1) + [last.workload]
    short = again.tracked(Req(system[:-1]))
    assert short is not None and short.workload == ""


def test_prefixes_are_bounded() -> None:
    """So many are named, and so many are counted: one that is seldom seen is forgotten."""
    prefixes = PromptPrefixes()
    names = {prefixes.workload_of([kind] * PREFIX_TOKENS) for kind in range(40) for _ in range(COMMON)}
    assert len(names - {""}) == 16
    prefixes = PromptPrefixes()
    for number in range(COMMON * 2000):
        assert prefixes.workload_of([number % 2000] * PREFIX_TOKENS) == ""


def test_live_acceptance_is_counted_by_workload(tap: Tap) -> None:
    """Drafted chains of captured requests only; labels beyond what the ring can name count as unlabelled."""
    code, plain = Req([1, 2], custom_params={"tide_workload": "code"}), Req([1, 2])
    out = Req([1, 2], custom_params={"tide": "off"})
    prefill(tap, [code, plain, out], [0, 0, 0], [2, 2, 2], [3, 3, 3])
    verify(tap, [code, plain, out], [[4, 5, 6], [4], [4, 5]], width=4)
    verify(tap, [code, plain, out], [[7], [5], [6]], width=1)
    assert tap.served == {"code": [1, 3], "": [1, 1]}
    for number in range(100):
        req = Req([1, 2], rid=f"r{number}", custom_params={"tide_workload": f"w{number}"})
        prefill(tap, [req], [0], [2], [3])
        verify(tap, [req], [[4, 5]], width=4)
    assert len(tap.served) <= MAX_LABELS + 1
    assert sum(chains for chains, _ in tap.served.values()) == 102


def test_collect_off_ends_what_runs(tap: Tap, ring: tuple[RingWriter, RingReader]) -> None:
    req = Req([1, 2])
    prefill(tap, [req], [0], [2], [3])
    tap.settings = CaptureSettings(False)
    verify(tap, [req], [[4]], width=1)
    verify(tap, [req], [[5]], width=1)
    rows = ring[1].take(100)
    assert rows["flags"].tolist()[-1] == FLAG_MARK | FLAG_LAST
    assert len(rows["flags"]) == 3


def test_running_request_is_taken_up_where_it_is(tap: Tap, ring: tuple[RingWriter, RingReader]) -> None:
    """Capture switched on in the middle of a request: rows from there on, with their true position."""
    req = Req([1, 2, 3])
    req.output_ids.extend([4, 5])
    verify(tap, [req], [[6, 7]], width=2)
    assert ring[1].take(100)["position"].tolist() == [4, 5]


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


def test_sampling_is_a_share_and_sticks_to_the_request() -> None:
    ids = [f"request-{n}" for n in range(4000)]
    picked = [rid for rid in ids if chosen(rid, 0.25)]
    assert 0.2 < len(picked) / len(ids) < 0.3
    assert [rid for rid in ids if chosen(rid, 0.25)] == picked
    assert all(chosen(rid, 0.5) for rid in picked)
    assert not any(chosen(rid, 0.0) for rid in ids)

"""Which requests the tap takes, from where to where, and as which workload."""

import numpy as np

from tests.unit.engine.tap_batches import VOCAB, Req, prefill, verify
from tide_daemon.engine.port import CaptureSettings
from tide_daemon.engine.ring import RingReader, RingWriter
from tide_daemon.engine.ring_layout import (
    FLAG_LAST,
    FLAG_MARK,
    MAX_LABELS,
)
from tide_daemon.engine.sglang.prefixes import COMMON, PREFIX_TOKENS, PromptPrefixes
from tide_daemon.engine.sglang.requests import ATTRIBUTE, OPTED_OUT, chosen
from tide_daemon.engine.sglang.tap import Tap


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


def test_sampling_is_a_share_and_sticks_to_the_request() -> None:
    ids = [f"request-{n}" for n in range(4000)]
    picked = [rid for rid in ids if chosen(rid, 0.25)]
    assert 0.2 < len(picked) / len(ids) < 0.3
    assert [rid for rid in ids if chosen(rid, 0.25)] == picked
    assert all(chosen(rid, 0.5) for rid in picked)
    assert not any(chosen(rid, 0.0) for rid in ids)


def test_running_request_is_taken_up_where_it_is(tap: Tap, ring: tuple[RingWriter, RingReader]) -> None:
    """Capture switched on in the middle of a request: rows from there on, with their true position."""
    req = Req([1, 2, 3])
    req.output_ids.extend([4, 5])
    verify(tap, [req], [[6, 7]], width=2)
    assert ring[1].take(100)["position"].tolist() == [4, 5]


def test_collect_off_ends_what_runs(tap: Tap, ring: tuple[RingWriter, RingReader]) -> None:
    req = Req([1, 2])
    prefill(tap, [req], [0], [2], [3])
    tap.settings = CaptureSettings(False)
    verify(tap, [req], [[4]], width=1)
    verify(tap, [req], [[5]], width=1)
    rows = ring[1].take(100)
    assert rows["flags"].tolist()[-1] == FLAG_MARK | FLAG_LAST
    assert len(rows["flags"]) == 3

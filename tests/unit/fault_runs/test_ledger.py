"""What counts as lost and as applied twice."""

from collections import Counter

from fault_runs import latency
from fault_runs.latency import Request
from fault_runs.ledger import Drafts, Samples, applied_twice, missing_drafts

from tide_daemon.wire.records import NodeReport

A, B, C = ("a", 0), ("b", 0), ("c", 0)


def report(starts: int, swaps: int, version: int, engine: str = "ready") -> NodeReport:
    digest = f"{version}" * 64 if version else ""
    return NodeReport("n", 1.0, 1, engine, version, digest, 0, 0, 1.0, (), False, 0, 0, 0, 0, 0, swaps, starts)


def test_an_acknowledged_chunk_must_be_stored() -> None:
    """One that was not acknowledged yet is counted apart."""
    samples = Samples()
    samples.seen(1, A)
    samples.seen(2, B)
    samples.acknowledged_up_to(1)
    seen = samples.by_now()
    assert samples.missing(Counter([A, B]), seen) == (0, 0, 0)
    assert samples.missing(Counter([B]), seen) == (1, 0, 0)
    assert samples.missing(Counter([A]), seen) == (0, 1, 0)
    assert samples.missing(Counter([A, B, B]), seen) == (0, 0, 1)


def test_a_chunk_that_came_later_waits_and_is_not_lost() -> None:
    """It is once it should have been taken, and at once if it was acknowledged."""
    samples = Samples()
    samples.seen(1, A)
    seen = samples.by_now()
    samples.seen(2, B)
    assert samples.missing(Counter([A]), seen) == (0, 0, 0)
    samples.forget_missing(Counter([A]), seen)
    assert samples.missing(Counter([A]), samples.by_now()) == (0, 1, 0)
    samples.acknowledged_up_to(2)
    assert samples.missing(Counter([A]), seen) == (1, 0, 0)


def test_a_place_that_another_chunk_took_is_not_an_acknowledgement_of_the_first() -> None:
    """The broker lost B before it was acknowledged, and C got its place."""
    samples = Samples()
    samples.seen(1, A)
    samples.acknowledged_up_to(1)
    samples.seen(2, B)
    samples.seen(2, C)
    samples.acknowledged_up_to(2)
    assert samples.missing(Counter([A, C]), samples.by_now()) == (0, 1, 0)
    samples.forget_missing(Counter([A, C]), samples.by_now())
    assert samples.missing(Counter([A, C]), samples.by_now()) == (0, 0, 0)


def test_an_acknowledgement_may_be_seen_before_its_chunk() -> None:
    """The consumer's state is read beside the stream."""
    samples = Samples()
    samples.acknowledged_up_to(5)
    samples.seen(3, A)
    assert samples.missing(Counter(), samples.by_now()) == (1, 0, 0)


def test_the_floor_may_go_back_and_rise_again() -> None:
    """A broker that was killed may have lost its newest acknowledgements."""
    samples = Samples()
    for sequence, chunk in ((1, A), (2, B)):
        samples.seen(sequence, chunk)
    samples.acknowledged_up_to(2)
    samples.acknowledged_up_to(1)
    samples.acknowledged_up_to(2)
    assert samples.missing(Counter([A]), samples.by_now()) == (1, 0, 0)


def test_a_version_stands_for_one_content() -> None:
    """A manifest that is gone or changed is lost; another content under the same number is a contradiction."""
    drafts = Drafts()
    drafts.seen(1, "x")
    drafts.seen(2, "y")
    drafts.seen(1, "x")
    assert drafts.num_contradictions == 0
    seen = drafts.by_now()
    drafts.seen(3, "w")  # after what is held against it was read
    assert missing_drafts(seen, {1: "x", 2: "y"}) == missing_drafts(seen, {1: "x", 2: "y", 3: "w"}) == 0
    assert missing_drafts(seen, {1: "x"}) == missing_drafts(seen, {1: "x", 2: "z"}) == 1
    drafts.seen(1, "z")
    assert drafts.num_contradictions == 1


def test_a_swap_without_a_change_is_one_too_many() -> None:
    """Within one life of the engine; a new life begins anew, and reports may be missing."""
    once = [report(1, 1, 1), report(1, 1, 1), report(1, 2, 2), report(1, 2, 2)]
    assert applied_twice(once) == 0
    assert applied_twice([*once, report(2, 0, 0), report(2, 1, 2)]) == 0
    assert applied_twice([report(1, 1, 1), report(1, 2, 1)]) == 1
    assert applied_twice([report(1, 1, 1), report(1, 3, 2)]) == 1
    assert applied_twice([report(1, 1, 1), report(1, 0, 0, "down"), report(1, 1, 1)]) == 0


def answered(started: float, seconds: float, prompt: int = 0, text: str = "x", error: str = "") -> Request:
    return Request(started, started + seconds, False, prompt, text, error)


def test_latency_is_told_over_that_of_before() -> None:
    """Failed requests are errors and not latencies; without one of both sides there is no figure."""
    before = [answered(number, 1.0) for number in range(10)]
    during = [answered(20 + number, 1.5) for number in range(10)] + [answered(25, 0.0, error="refused")]
    extra = latency.extra(before, during)
    assert extra is not None and abs(extra["median"] - 0.5) < 1e-9
    assert latency.extra([], during) is None and latency.extra(before, during[-1:]) is None
    assert len(latency.errors(during)) == 1
    assert latency.within(during, 24.2, 24.3) == [during[3], during[4]] or latency.within(during, 24.2, 24.3)


def test_requests_that_were_running_belong_to_a_span() -> None:
    """Begun before and ended after counts."""
    long, early, late = answered(1.0, 10.0), answered(0.0, 0.5), answered(9.0, 1.0)
    assert latency.within([long, early, late], 5.0, 6.0) == [long]


def test_another_answer_to_a_prompt_is_found() -> None:
    """Against the first one, failures aside."""
    known: dict[int, str] = {}
    assert not latency.other_answers([answered(0, 1, 0, "a"), answered(1, 1, 1, "b")], known)
    other = answered(2, 1, 0, "c")
    assert latency.other_answers([answered(2, 1, 1, "b"), other, answered(3, 1, 1, "", "gone")], known) == [other]

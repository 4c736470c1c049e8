"""Streams and consumers as data: coverage of subjects, limits, no overlap."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tide_daemon.bus.topology import TopologyLimits, build_topology, covers
from tide_daemon.config.sections import all_settings

TOKENS = st.sampled_from(["a", "b", "c"])
SUBJECTS = st.lists(TOKENS, min_size=1, max_size=4).map(".".join)
PATTERNS = st.builds(
    lambda tokens, tail: ".".join([*tokens, *tail]),
    st.lists(st.sampled_from(["a", "b", "*"]), min_size=1, max_size=3),
    st.sampled_from([[], [">"]]),
)


@pytest.mark.parametrize(
    ("pattern", "subject", "expected"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.b.c", False),
        ("a.b.c", "a.b", False),
        ("a.*", "a.b", True),
        ("a.*", "a.b.c", False),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        ("a.>", "a.>", True),
        ("a.>", "a.*.b", True),
        ("a.*", "a.>", False),
        ("a.b", "a.*", False),
        ("*.b", "a.b", True),
    ],
)
def test_covers(pattern: str, subject: str, expected: bool) -> None:
    """NATS wildcards: * is one token, > is one or more at the end."""
    assert covers(pattern, subject) is expected


@given(PATTERNS, PATTERNS, SUBJECTS)
def test_covering_a_pattern_covers_its_subjects(outer: str, inner: str, subject: str) -> None:
    """If outer covers inner, every subject of inner is one of outer."""
    if covers(outer, inner) and covers(inner, subject):
        assert covers(outer, subject)


def test_every_kind_of_subject_has_its_stream() -> None:
    """The subjects that the daemon publishes, one by one."""
    topology = build_topology(TopologyLimits())
    for subject, stream in (
        ("tide.v1.hidden.m.n", "TIDE_HIDDEN"),
        ("tide.v1.report.m.n.node", "TIDE_REPORT"),
        ("tide.v1.draft.m.7.manifest", "TIDE_DRAFT"),
        ("tide.v1.target.m.lm_head.0", "TIDE_TARGET"),
        ("tide.v1.control.m.server.n", "TIDE_CONTROL"),
        ("tide.v1.journal.m", "TIDE_JOURNAL"),
        ("tide.v1.forget.m.ab.t1", "TIDE_FORGET"),
        ("$KV.TIDE_LEASE.m", "KV_TIDE_LEASE"),
    ):
        assert topology.stream_of(subject).name == stream
    with pytest.raises(ValueError, match="no stream stores"):
        topology.stream_of("tide.v2.hidden.m.n")


def test_streams_do_not_overlap() -> None:
    """A subject belongs to one stream; the server refuses anything else."""
    streams = build_topology(TopologyLimits()).streams
    for one, other in itertools.combinations(streams, 2):
        for pattern, subject in itertools.product(one.subjects, other.subjects):
            assert not covers(pattern, subject)
            assert not covers(subject, pattern)


def test_window_never_exceeds_the_age() -> None:
    """The server refuses a duplicate window longer than the maximum age."""
    limits = TopologyLimits(hidden_max_age_s=10.0, duplicate_window_s=600.0)
    assert build_topology(limits).stream_of("tide.v1.hidden.m.n").duplicate_window_s == 10.0


def test_replicas_turn_asynchronous_persistence_off() -> None:
    """The server takes it on unreplicated streams only."""
    assert build_topology(TopologyLimits()).stream_of("tide.v1.hidden.m.n").persist_async
    assert not build_topology(TopologyLimits(replicas=3)).stream_of("tide.v1.hidden.m.n").persist_async


def test_limits_name_every_problem() -> None:
    """All problems in one message."""
    with pytest.raises(
        ValueError, match=r"hidden_max_bytes must be at least(.|\n)*replicas must be 1, 3 or 5"
    ) as wrong:
        TopologyLimits(hidden_max_bytes=10, replicas=2, ack_wait_s=-1.0)
    assert "ack_wait_s must not be negative" in str(wrong.value)


def test_demands_to_forget_outlive_every_store() -> None:
    """A trainer that was away for as long as its store may keep samples still finds them; none is dropped for room."""
    oldest_s = next(s.rules.maximum for s in all_settings() if s.key == "trainer.store_max_age_s")
    spec = build_topology(TopologyLimits()).stream_of("tide.v1.forget.m.ab")
    assert oldest_s is not None and spec.max_age_s > oldest_s
    assert spec.refuse_when_full

"""Scores between the worker, a round's file and a manifest: plain numbers, nothing is lost, sizes are bounded."""

import json

from tide_daemon.trainer import scores
from tide_daemon.trainer.positions import bucket_of
from tide_daemon.trainer.scores import (
    HeldOutBucket,
    HeldOutScore,
    by_request,
    from_kept,
    from_maps,
    kept,
    paired,
    to_maps,
)
from tide_daemon.wire.records import PositionScore, RequestScore

ONE = HeldOutScore("a" * 16, "code", 90, 40, (60.0, 70.0), (HeldOutBucket(0, 40, (60.0, 70.0)),))
GAP = HeldOutScore(
    "a" * 16, "code", 150, 30, (40.0, 50.0), (HeldOutBucket(0, 10, (12.0, 15.0)), HeldOutBucket(64, 20, (28.0, 35.0)))
)


def test_buckets_begin_where_they_say() -> None:
    """0-63, 64-255, 256-1023, 1024 and more."""
    assert [bucket_of(index) for index in (0, 63, 64, 255, 256, 1023, 1024, 10**6)] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_parts_of_one_request_are_added() -> None:
    """A request with a gap is one piece of evidence, in its buckets too."""
    (whole,) = by_request([ONE, GAP])
    assert (whole.first_position, whole.num_positions, whole.tokens) == (90, 70, (100.0, 120.0))
    assert whole.by_position == (HeldOutBucket(0, 50, (72.0, 85.0)), HeldOutBucket(64, 20, (28.0, 35.0)))


def test_scores_come_back_equal() -> None:
    """Through the pipe's maps, and through a round's file."""
    assert from_maps(json.loads(json.dumps(to_maps([ONE, GAP])))) == [ONE, GAP]
    made = paired([ONE])
    assert made == (RequestScore("a" * 16, "code", 90, 40, 60.0, 70.0, (PositionScore(0, 40, 60.0, 70.0),)),)
    assert from_kept(json.loads(json.dumps(kept(made)))) == made


def test_files_from_before_have_no_buckets() -> None:
    """A round that was scored by an earlier release goes on."""
    old = {"request": "b" * 16, "workload": "", "first_position": 0, "num_positions": 9, "serving_tokens": 10.0,
           "candidate_tokens": 12.0}  # fmt: skip
    assert from_kept([old]) == (RequestScore("b" * 16, "", 0, 9, 10.0, 12.0),)


def test_what_travels_is_bounded(monkeypatch) -> None:
    """Beyond the newest few requests only the sums are sent."""
    monkeypatch.setattr(scores, "MAX_BY_POSITION", 1)
    made = paired([ONE, GAP])
    assert [len(score.by_position) for score in made] == [1, 0]

"""Equality of records, tensors compared by dtype, shape and bits."""

import dataclasses

import numpy as np

from tide_daemon.wire.records import HiddenChunk, Record


def assert_same(expected: Record, actual: Record) -> None:
    """Fail unless both records have the same type and content."""
    assert type(expected) is type(actual)
    if not isinstance(expected, HiddenChunk):
        assert expected == actual
        return
    for field in dataclasses.fields(expected):
        left, right = getattr(expected, field.name), getattr(actual, field.name)
        if isinstance(left, np.ndarray):
            assert left.dtype == right.dtype, field.name
            assert left.shape == right.shape, field.name
            assert left.tobytes() == right.tobytes(), field.name
        else:
            assert left == right, field.name

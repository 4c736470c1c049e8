"""Streams that run side by side: the token rate while all of them run, as their client sees it.

From the first piece of the stream that begins last to the last piece of the stream that ends first the
batch size is the number of streams, and no prefill is in between.
"""

from collections.abc import Sequence

import numpy as np

Arrival = tuple[float, int]
"""Seconds, and tokens of the stream so far."""


def while_all_run(streams: Sequence[Sequence[Arrival]]) -> tuple[float, float]:
    """(tokens of all streams, seconds) of the span in which all run.

    The pieces of one step arrive one after the other; between two pieces of a stream its tokens are taken to come
    evenly, so that it does not matter which stream's piece ends the span.

    Raises:
        ValueError: there is no such span: one stream was over before another began.
    """
    start = max(stream[0][0] for stream in streams)
    end = min(stream[-1][0] for stream in streams)
    if end <= start:
        raise ValueError("the streams did not run at the same time")
    tokens = 0.0
    for stream in streams:
        times, counts = zip(*stream, strict=True)
        first, last = np.interp([start, end], times, counts)
        tokens += float(last - first)
    return tokens, end - start

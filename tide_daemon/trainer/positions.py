"""Where in its response a chain starts, and the buckets that scores are summed by. No torch.

A draft may be good at the beginning of an answer and bad deep inside a long one, or the other way round; a sum over
the whole request hides that. Bucket i holds the starts whose first token is the n-th of the response, 0 first:

    0 - 63      64 - 255      256 - 1023      1024 and more
"""

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from tide_daemon.trainer.sample import Sample

BUCKETS = (0, 64, 256, 1024)
"""First index in the response of each bucket, ascending."""


def bucket_of(index: int) -> int:
    """Number of the bucket that holds this index in the response, at least 0."""
    return bisect_right(BUCKETS, index) - 1


def response_starts(samples: Sequence[Sample]) -> list[int]:
    """For each sample the position of its request's first chain start, which predicts the first response token.

    A request with gaps is several samples; the earliest one counts for all. When the beginning of a response was not
    captured at all, the first captured token counts as its first: the request's buckets then begin too late.
    """
    first: dict[str, int] = {}
    for sample in samples:
        generated = np.flatnonzero(sample.loss_mask)
        row = max(0, int(generated[0]) - 1) if len(generated) else sample.num_rows - 1
        position = sample.first_position + row
        first[sample.request_id] = min(first.get(sample.request_id, position), position)
    return [first[sample.request_id] for sample in samples]

"""The draft's KV cache while nothing is drafted, and which requests lack it.

SGLang keeps the draft's KV cache filled by running the draft's one layer over every new token, also at
0 steps ("draft-extend"). That costs time, so it is worth a rule:

- No trained draft loaded (version 0, day 0): skipped, at prefill and at decode. The placeholder's KV
  would be worthless anyway. Day 0 costs what plain decoding costs.
- A draft loaded, 0 steps for this batch: on a GPU run, as SGLang does; on a CPU made up for later, many tokens
  at a time (catch_up.py). Either way a request drafts with a whole context as soon as the batch shrinks.

A request that was served while draft-extend was skipped for good is *cold*: its draft KV has holes that hold
whatever was in those slots. Drafting from it is lossless and useless. It is not re-primed (the aux states of
its past are gone); it stays cold until it ends. While most of a batch is cold the batch decodes plainly,
and batches with any cold request are left out of the acceptance counts.

The prefix cache holds draft KV too, and would hand later requests the KV of the draft that served the first one:
none at all under version 0, and for a system prompt that stays cached, that of a draft long gone. So requests share
cached prefixes only with requests that entered under the same draft version: the cache key gets the version as a
suffix. After a swap a shared prefix is computed once more, old entries are evicted in their time, and nothing is
flushed or drained. Requests that are running keep the KV of the previous version: slightly stale, lossless, gone with
them.
"""

from collections.abc import Sequence
from typing import Any

ATTRIBUTE = "tide_cold"
_KEY = "tide-draft-"


def mark_cold(reqs: Sequence[Any]) -> None:
    """Remember that these requests' draft KV has holes."""
    for req in reqs:
        setattr(req, ATTRIBUTE, True)


def is_cold(req: Any) -> bool:
    """Whether a request's draft KV has holes."""
    return ATTRIBUTE in req.__dict__


def num_cold(reqs: Sequence[Any]) -> int:
    """How many requests of a batch are cold."""
    return sum(ATTRIBUTE in req.__dict__ for req in reqs)


def separate_cache_key(req: Any, version: int) -> None:
    """Have a request share cached prefixes with those of the same draft version only. A second call changes nothing."""
    key = req.extra_key or ""
    if _KEY not in key:
        req.extra_key = f"{key}|{_KEY}{version}" if key else f"{_KEY}{version}"

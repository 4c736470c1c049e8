"""Workloads of requests whose client names none: by the beginning of their prompt, where that comes again and again.

An application sends the same system prompt with every request, so the first PREFIX_TOKENS tokens of the prompt tell
applications apart. A beginning that was seen COMMON times, while it was among the last few different ones, is a
workload of its own, named by its hash; all others, and prompts shorter than that, have none. The hash is of token ids
alone, so the same application has the same name on every node. What this cannot see: two applications that begin
alike, and short system prompts, where the user's words fall into the beginning.

Bounded: so many beginnings are counted, the least recently seen one goes; so many are ever named by one engine, because
the ring's table of labels is small and shared with labels that clients give.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

PREFIX_TOKENS = 32
COMMON = 8
_MAX_COUNTED = 1024
_MAX_NAMED = 16


class PromptPrefixes:
    """Counts beginnings of prompts. Used by the step loop's thread only."""

    def __init__(self) -> None:
        self._counts: OrderedDict[bytes, int] = OrderedDict()
        self._names: dict[bytes, str] = {}

    def workload_of(self, prompt: Sequence[int]) -> str:
        """Name of the workload that this prompt's beginning is known as, "" for none yet; counts the prompt."""
        if len(prompt) < PREFIX_TOKENS:
            return ""
        tokens = array("q", prompt[:PREFIX_TOKENS])
        digest = hashlib.blake2b(tokens.tobytes(), digest_size=8).digest()
        name = self._names.get(digest)
        if name is not None:
            return name
        count = self._counts.pop(digest, 0) + 1
        self._counts[digest] = count
        if len(self._counts) > _MAX_COUNTED:
            self._counts.popitem(last=False)
        if count < COMMON or len(self._names) >= _MAX_NAMED:
            return ""
        del self._counts[digest]
        return self._names.setdefault(digest, f"prompt-{digest.hex()[:8]}")

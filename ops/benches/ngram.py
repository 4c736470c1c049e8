"""Prompt lookup: drafts what followed the last earlier occurrence of the newest words. No model, no training.

The bar that a learnt draft is held against, on the same requests and counted the same way: the accept
length in serving order, where each step starts behind what the one before accepted.
"""

from collections.abc import Sequence

LONGEST, SHORTEST = 4, 1


def proposal(context: Sequence[int], num_steps: int) -> Sequence[int]:
    """The tokens after the newest earlier occurrence of the longest suffix that occurs earlier, up to LONGEST."""
    for size in range(min(LONGEST, len(context) - 1), SHORTEST - 1, -1):
        suffix = context[-size:]
        for start in range(len(context) - size - 1, -1, -1):
            if context[start : start + size] == suffix:
                return context[start + size : start + size + num_steps]
    return []


def walk(prompt: Sequence[int], answer: Sequence[int], num_steps: int) -> tuple[int, int]:
    """Verify steps and tokens emitted over an answer; starts without all their answers are left out."""
    text = [*prompt, *answer]
    position, num_verifies, num_tokens = len(prompt), 0, 0
    while position + num_steps < len(text):
        accepted = 0
        for guess, truth in zip(proposal(text[: position + 1], num_steps), text[position + 1 :], strict=False):
            if guess != truth:
                break
            accepted += 1
        num_verifies += 1
        num_tokens += 1 + accepted
        position += 1 + accepted
    return num_verifies, num_tokens

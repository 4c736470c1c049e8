"""Step times and acceptance for the cost model, by batch size and number of draft steps.

The step loop adds one step at a time into fixed arrays; the control thread copies them out. Under the
interpreter's lock a reader may see a step's token count before its time: off by one step, which no use
of these cumulative counts notices.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np

_WINDOW = 64
_WINDOW_S = 30.0
"""Steps this much older than the newest of their kind are not in its median. While drafting, one plain step in dozens
is all that shows what plain decoding costs: 64 of them are minutes, and the median would be that of minutes ago."""
_MAX_KINDS = 4096


class _Kind:
    """One (batch size, number of steps)."""

    __slots__ = ("accepted_at", "num_tokens", "num_verifies", "recent", "recent_at", "step_s", "target_s")

    def __init__(self, num_steps: int) -> None:
        self.num_verifies = 0
        self.num_tokens = 0
        self.accepted_at = [0] * num_steps
        self.step_s = 0.0
        self.target_s = 0.0
        self.recent = np.zeros(_WINDOW)
        self.recent_at = np.full(_WINDOW, -np.inf)

    def median_step_s(self) -> float:
        """Median of the newest steps: at most _WINDOW, and not older than _WINDOW_S before the newest."""
        return float(np.median(self.recent[self.recent_at >= self.recent_at.max() - _WINDOW_S]))


class StepTimes:
    """Cumulative counts since the engine started. `clock` in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kinds: dict[tuple[int, int], _Kind] = {}

    def add(self, batch_size: int, num_steps: int, num_correct: Sequence[int], step_s: float, target_s: float) -> None:
        """Count one verification.

        Args:
            num_correct: accepted draft tokens of each request, the bonus token not included.
            step_s: draft, verification and draft-extend, wall seconds.
            target_s: the verification's part.
        """
        kind = self._kinds.get((batch_size, num_steps))
        if kind is None:
            if len(self._kinds) >= _MAX_KINDS:
                return
            kind = self._kinds[(batch_size, num_steps)] = _Kind(num_steps)
        slot = kind.num_verifies % _WINDOW
        kind.recent[slot], kind.recent_at[slot] = step_s, self._clock()
        kind.num_verifies += 1
        kind.num_tokens += sum(num_correct) + len(num_correct)
        for position in range(num_steps):
            kind.accepted_at[position] += sum(correct > position for correct in num_correct)
        kind.step_s += step_s
        kind.target_s += target_s

    def snapshot(self) -> list[list[object]]:
        """Rows [batch_size, num_steps, num_verifies, num_tokens, accepted_at, step_s, target_s, median_step_s]."""
        rows: list[list[object]] = []
        for (batch_size, num_steps), kind in sorted(self._kinds.copy().items()):
            rows.append(
                [batch_size, num_steps, kind.num_verifies, kind.num_tokens, list(kind.accepted_at), kind.step_s,
                 kind.target_s, kind.median_step_s()]
            )  # fmt: skip
        return rows


class Stopwatch:
    """Wall time on a CPU, where a call that returned is done. Its GPU counterpart is in gpu.py."""

    def mark(self) -> float:
        """Now."""
        return time.perf_counter()

    def elapsed(self, start: float, stop: float) -> float | None:
        """Seconds between two marks; None when not known yet."""
        return stop - start

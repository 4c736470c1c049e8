"""Step times and acceptance for the cost model, by batch size and number of draft steps.

The step loop adds one step at a time into fixed arrays; the control thread copies them out. Under the
interpreter's lock a reader may see a step's token count before its time: off by one step, which no use
of these cumulative counts notices.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_WINDOW = 64
_WINDOW_S = 2.0
"""Steps this much older than the newest of their kind are not in its median. A shared machine gets faster or slower by
a half within seconds, and while drafting one plain step in dozens is all that shows what plain decoding costs: it must
not be compared with drafting steps of another moment. See ops/decisions/0043."""
_MAX_KINDS = 4096
_MAX_OPEN = 16


class _Kind:
    """One (batch size, number of steps)."""

    __slots__ = ("accepted_at", "num_recent", "num_tokens", "num_verifies", "recent", "recent_at", "step_s", "target_s")

    def __init__(self, num_steps: int) -> None:
        self.num_verifies = 0
        self.num_tokens = 0
        self.accepted_at = [0] * num_steps
        self.step_s = 0.0
        self.target_s = 0.0
        self.num_recent = 0
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

    def add(
        self,
        batch_size: int,
        num_steps: int,
        num_correct: Sequence[int],
        step_s: float,
        target_s: float,
        *,
        typical: bool = True,
    ) -> None:
        """Count one verification.

        Args:
            num_correct: accepted draft tokens of each request, the bonus token not included.
            step_s: from this step's beginning to the next one's, wall seconds.
            target_s: the verification's part.
            typical: False keeps it out of the median, unless nothing else is known.
        """
        kind = self._kinds.get((batch_size, num_steps))
        if kind is None:
            if len(self._kinds) >= _MAX_KINDS:
                return
            kind = self._kinds[(batch_size, num_steps)] = _Kind(num_steps)
        if typical or not kind.num_recent:
            slot = kind.num_recent % _WINDOW
            kind.recent[slot], kind.recent_at[slot] = step_s, self._clock()
            kind.num_recent += 1
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


@dataclass(slots=True)
class Step:
    """One decode step under way. Marks are the clock's; None until passed. `typical`: see StepTimes.add."""

    num_steps: int
    target_start: Any
    target_stop: Any
    start: Any = None
    stop: Any = None
    batch_size: int = 0
    num_correct: Sequence[int] | None = None
    typical: bool = True


class StepRecorder:
    """Follows decode steps from their beginning to the beginning of whatever comes next.

    A step costs its clients everything until the next one can begin: draft, verification and
    draft-extend, the draft's KV made up for, and the processing of its results (stop conditions, rows
    captured, output sent), which grows with the tokens of a step. With overlap scheduling the
    results come one step later; the difference between two beginnings holds there as well.
    """

    def __init__(self, times: StepTimes, clock: Any) -> None:
        self._times = times
        self._clock = clock
        self._running: Step | None = None
        self._counted: deque[Step] = deque(maxlen=_MAX_OPEN)

    def idle(self) -> None:
        """The engine has nothing to run: the step under way, if any, is over."""
        if self._running is not None:
            self.begin()

    def begin(self) -> Any:
        """A batch begins: the step under way is over. Returns the mark."""
        mark = self._clock.mark()
        if self._running is not None:
            self._running.stop = mark
            self._running = None
        self._settle()
        return mark

    def launched(self, step: Step, start: Any) -> None:
        """The engine began `step` at `start` and has launched it."""
        step.start = start
        self._running = step

    def processed(self, step: Step, batch_size: int, num_correct: Sequence[int]) -> None:
        """The results of `step` are known."""
        step.batch_size, step.num_correct = batch_size, num_correct
        self._counted.append(step)
        self._settle()

    def _settle(self) -> None:
        """Count what has both its results and its end, oldest first."""
        while self._counted and self._counted[0].stop is not None:
            step = self._counted[0]
            step_s = self._clock.elapsed(step.start, step.stop)
            target_s = self._clock.elapsed(step.target_start, step.target_stop)
            if step_s is None or target_s is None or step.num_correct is None:
                return
            correct, typical = step.num_correct, step.typical
            self._times.add(step.batch_size, step.num_steps, correct, step_s, target_s, typical=typical)
            self._counted.popleft()

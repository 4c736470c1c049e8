"""How many tokens the draft proposes for a batch: a table by batch size, changed at run time.

SGLang asks `AdaptiveSpeculativeParams.get_steps_for_batch` before each decode batch (srt/speculative/
adaptive_runtime_state.py, activate_step_by_batch) and has a runtime state ready for each candidate. Our
table answers instead of SGLang's own rule, whose reaction to verification results is silenced.
"""

from collections.abc import Sequence

from tide_daemon.errors import EngineError

MAX_TABLE = 256

PLAIN_RUN = 2
"""Plain batches in a row while drafting; only the last one's time tells. A plain step behind drafting ones takes 4 to
11% longer than one among plain ones (batch 8, our measurement, ops/decisions/0051): a loss looked like a gain."""


def check_table(table: Sequence[tuple[int, int]], candidates: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """A valid table.

    Args:
        table: (largest batch size, num_steps), ascending; above the last entry plain decoding.
        candidates: the numbers of steps that the engine has states for.

    Raises:
        EngineError: not ascending, or a number of steps that the engine was not started with.
    """
    entries = tuple((int(batch), int(steps)) for batch, steps in table)
    sizes = [batch for batch, _ in entries]
    if len(entries) > MAX_TABLE or sizes != sorted(set(sizes)) or any(size < 1 for size in sizes):
        raise EngineError("steps table: batch sizes must be at least 1 and ascending")
    if wrong := sorted({steps for _, steps in entries} - set(candidates)):
        raise EngineError(f"steps table: {wrong} steps asked for, the engine was started with {sorted(candidates)}")
    return entries


class Steps:
    """The table in force. The control thread replaces it whole; the step loop reads it.

    Attributes:
        allowed: False while no trained draft is loaded: then always 0.
        cold_majority: most requests of the coming batch have no usable draft KV, see cold.py.
        plain_every: after so many drafting batches PLAIN_RUN decode plainly, 0 for never. What speculation gains is
            a ratio of two step times, and a plain time that is minutes old is off by more than the gain in question.
    """

    def __init__(self, candidates: Sequence[int], plain_every: int = 0) -> None:
        self.candidates = tuple(sorted(candidates))
        self.table: tuple[tuple[int, int], ...] = ()
        self.allowed = False
        self.cold_majority = False
        self.plain_every = plain_every
        self._num_drafting = 0
        self._num_plain = 0

    def set_table(self, table: Sequence[tuple[int, int]]) -> None:
        """Raises EngineError for a table that this engine cannot follow."""
        self.table = check_table(table, self.candidates)

    def for_batch(self, batch_size: int) -> int:
        """Draft steps for the coming batch, of this many requests."""
        if not self.allowed or self.cold_majority or self._plain_is_due():
            return 0
        return next((steps for largest, steps in self.table if batch_size <= largest), 0)

    def took(self, num_steps: int) -> bool:
        """A batch decoded with so many draft steps. Whether its time is that of a step among its like."""
        if num_steps:
            self._num_drafting += 1
        elif self._plain_is_due():
            self._num_plain += 1
            if self._num_plain < PLAIN_RUN:
                return False
            self._num_drafting = self._num_plain = 0
        return True

    def _plain_is_due(self) -> bool:
        return 0 < self.plain_every <= self._num_drafting

"""What a step costs on a modelled server: T(b (k + 1)) + k D0, the form of TIDE eq. 5, from given points."""

from bisect import bisect_left

from tide_daemon.simulate.scenario import Cost


class CostCurve:
    """Seconds of a step by (batch size, num_steps); every value is computed once."""

    def __init__(self, cost: Cost) -> None:
        self._tokens = cost.tokens
        self._target_s = tuple(ms / 1000.0 for ms in cost.target_ms)
        self._draft_s = cost.draft_ms / 1000.0
        self._known: dict[tuple[int, int], float] = {}

    def step_s(self, batch_size: int, num_steps: int) -> float:
        """Seconds of one step at the server's usual speed."""
        known = self._known.get((batch_size, num_steps))
        if known is None:
            known = self.target_s(batch_size * (num_steps + 1)) + num_steps * self._draft_s
            self._known[batch_size, num_steps] = known
        return known

    def target_s(self, num_tokens: float) -> float:
        """T(n): flat before the first point, on with the last slope after the last one."""
        tokens, seconds = self._tokens, self._target_s
        if num_tokens <= tokens[0] or len(tokens) == 1:
            return seconds[0]
        right = min(bisect_left(tokens, num_tokens), len(tokens) - 1)
        slope = (seconds[right] - seconds[right - 1]) / (tokens[right] - tokens[right - 1])
        return seconds[right - 1] + slope * (num_tokens - tokens[right - 1])

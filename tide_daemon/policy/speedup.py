"""What a step costs on one node, and what speculation gains there.

Letters: b running requests, g = num_steps drafted tokens, T(n) the target's seconds for n tokens in
parallel, D0 seconds of one draft step. TIDE eq. 5:

    c(b) = D0 / T(b)      beta(b) = T(b * (g + 1)) / T(b)      speedup = E[l] / (c(b) * g + beta(b))

which is (tokens/s with g) / (tokens/s plain) when a step costs T(b * (g + 1)) + g * D0. A real step
also has a part O that is neither's (scheduling, results): it is what a plain step takes beyond T.

Where (b, g) was measured, its own median is used. Elsewhere T(b * (g + 1)) + g * D0 + O with T interpolated:
every measured cell gives one point of T (n = b * (g + 1), the target's share of the step);
the points are made monotone by a running maximum and joined by lines.
Below the smallest n, T is flat; above the largest it goes on with the overall slope. D0 is what is neither
T nor O in the measured cells whose b is nearest, O that of the plain cell whose b is nearest. Before anything
speculated, D0 and the slope come from the settings' priors.

The first drafted token costs more than each further one, for the pass that fills the draft's KV cache
is part of it (EAGLE's draft-extend). So instead of g D0 the formula has D1 (1 + q (g - 1)), where q is
what a further token costs as a share of the first. Batch sizes at which two chain lengths were measured
show q; it is taken to be the same for all. Before any did, q = 1, which is eq. 5.

Batch sizes next to each other cost nearly the same, and one that is seldom seen is known badly: a plain step in dozens
while drafting, divided over all batch sizes. So what a measured cell is taken to cost is its own median and what its
measured neighbours with as many steps make one expect, each by its precision (`_seconds`).

A machine gets slower and faster as a whole (neighbours, clock rates, longer contexts), and only one
cell is measured at a time, so comparing a fresh cell with an old one would mislead. Each observation
is therefore split between a factor common to all cells and the cell itself, like a two-state Kalman
filter on log seconds with its cross terms left out: what was seen a moment ago is known well, so a
change there moves the factor; a cell not seen for minutes takes the change itself.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tide_daemon.policy.events import StepCount, StepTimed

_FACTOR_DRIFT = 0.0005
"""Growth of the common factor's variance a second, log units squared: about 2% in a second, 12% in 30 s."""
_CELL_DRIFT = 0.00002
"""The same of a cell that is not seen: about 5% in two minutes."""
_STEP_NOISE = 0.01
"""Variance of one step's log seconds (10%); a median over n steps has n times less, down to the floor."""
_NOISE_FLOOR = 0.0001
_FIRST_NOISE = 0.5
"""Variance that a cell's first observation has besides: a factor of two. First steps are cold (kernels are compiled,
memory is fetched), so the second observation takes its place; else one cold second kept drafting off for hours."""
_OUTLIER = 2.0
"""A median that is further off what is expected, in standard deviations, is moved to that bound: one stall must not be
believed at once, and one step in dozens is all that shows what plain decoding costs. See ops/decisions/0043."""
_ELASTICITY = 0.25
"""A step with x% more requests is expected to take this share of x% longer: from nothing where memory is the bound to
all of it where arithmetic is. Our measurement on a CPU: 0.13 to 0.35. See ops/decisions/0056."""
_ELASTICITY_SD = 0.2
_NEIGHBOUR_SD = 0.03
"""Standard deviations of what a neighbour makes one expect, log units: of the elasticity, and at any distance."""
_NEIGHBOUR = math.log(4 / 3) + 1e-9
"""Batch sizes further apart than a third say nothing of each other."""
_MIN_TARGET_SHARE = 0.05
"""A target pass is never free: a node that says so must not make every chain look free."""
_MAX_CELLS = 1024


def speedup(accept_length: float, draft_cost: float, num_steps: int, verify_cost: float) -> float:
    """TIDE eq. 5: E[l] / (c * gamma + beta). Costs are in units of T(b)."""
    return accept_length / (draft_cost * num_steps + verify_cost)


@dataclass(slots=True)
class _Cell:
    """Log seconds at common factor 1 and the seconds themselves, variance, and the target's share of the step."""

    log_s: float
    seconds: float
    variance: float
    at: float
    target_share: float
    num_verifies: int


class CostModel:
    """Step seconds by (batch size, num_steps) on one node. Changed by `observe` only.

    Everything inside is at common factor 1: ratios do not need the factor, and seconds take it at the end.

    Args:
        prior_draft_cost: D0 / T of the smallest batch before any draft step was timed.
        prior_token_cost: T(n) = T(n0) * (1 + this * (n / n0 - 1)) before T was measured at two sizes.
    """

    def __init__(self, prior_draft_cost: float, prior_token_cost: float) -> None:
        self._prior_draft_cost = prior_draft_cost
        self._prior_token_cost = prior_token_cost
        self._cells: dict[tuple[int, int], _Cell] = {}
        self._factor = 0.0
        self._factor_variance = 0.0
        self._factor_at = 0.0
        # Which cells there are, looked at with every report and changed seldom.
        self._points: list[tuple[float, list[_Cell]]] = []  # cells by n, ascending
        self._plain: list[int] = []  # batch sizes of plain cells
        self._drafted: dict[int, list[int]] = {}  # num_steps of the others by batch size, both ascending
        self._sizes: dict[int, list[int]] = {}  # batch sizes of cells by num_steps, ascending
        self._nearest_plain: dict[int, int] = {}
        self._nearest_drafted: dict[int, int] = {}
        # Looked up once per observation.
        self._curve: list[tuple[float, float]] | None = None
        self._blended: dict[tuple[int, int], float] = {}
        self._first_drafts: dict[int, float] = {}
        self._known_later_share: float | None = None

    def observe(self, at: float, steps: tuple[StepCount, ...]) -> None:
        """Take in the timings of one report; steps without a usable time are left out."""
        num_cells = len(self._cells)
        for step in sorted(steps, key=lambda item: (item.batch_size, item.num_steps)):
            usable = 0.0 < step.median_step_s < math.inf and step.step_s > 0.0
            if step.num_verifies > 0 and step.batch_size > 0 and usable:
                self._observe_cell(at, step)
        if len(self._cells) > num_cells:
            self._cells_came()
        self._curve = self._known_later_share = None
        self._first_drafts.clear()
        self._blended.clear()

    def _cells_came(self) -> None:
        """Forget the oldest ones if there are too many, and note which there are."""
        if len(self._cells) > _MAX_CELLS:
            oldest = sorted(self._cells, key=lambda key: (self._cells[key].at, key))
            for key in oldest[: len(self._cells) - _MAX_CELLS]:
                del self._cells[key]
        points: dict[int, list[_Cell]] = {}
        self._drafted, self._sizes = {}, {}
        for batch_size, num_steps in sorted(self._cells):
            self._sizes.setdefault(num_steps, []).append(batch_size)
            points.setdefault(batch_size * (num_steps + 1), []).append(self._cells[batch_size, num_steps])
            if num_steps > 0:
                self._drafted.setdefault(batch_size, []).append(num_steps)
        self._points = [(float(num_tokens), points[num_tokens]) for num_tokens in sorted(points)]
        self._plain = [batch_size for batch_size, num_steps in self._cells if num_steps == 0]
        self._nearest_plain.clear()
        self._nearest_drafted.clear()

    def remembered(self) -> tuple[StepTimed, ...]:
        """All cells, the common factor in their seconds."""
        factor = math.exp(self._factor)
        return tuple(
            StepTimed(*key, cell.num_verifies, cell.seconds * factor, cell.variance, cell.target_share, cell.at)
            for key, cell in sorted(self._cells.items())
        )

    def adopt(self, timed: Iterable[StepTimed]) -> None:
        """Start from what was remembered; the common factor begins at 1."""
        for item in timed:
            self._cells[item.batch_size, item.num_steps] = _Cell(
                math.log(item.seconds), item.seconds, item.variance, item.at, item.target_share, item.num_verifies
            )
            self._factor_at = max(self._factor_at, item.at)
        self._cells_came()

    def measured_at(self, batch_size: int, num_steps: int) -> float | None:
        """When this cell was last seen, None if never."""
        cell = self._cells.get((batch_size, num_steps))
        return None if cell is None else cell.at

    def step_s(self, batch_size: int, num_steps: int) -> float | None:
        """Seconds of one step, measured or from the formula; None while no cell is known."""
        return self._step(batch_size, num_steps) * math.exp(self._factor) if self._cells else None

    def target_s(self, num_tokens: int) -> float | None:
        """T(n): the target's seconds for n tokens in parallel, interpolated; None while no cell is known."""
        return self._target(num_tokens) * math.exp(self._factor) if self._cells else None

    def draft_s(self, batch_size: int, num_steps: int) -> float:
        """The draft's seconds in a step of so many drafted tokens."""
        return self._draft(batch_size, num_steps) * math.exp(self._factor) if self._cells else 0.0

    def rest_s(self, batch_size: int) -> float:
        """O at this batch size: seconds of a step that neither target nor draft takes."""
        return self._rest(batch_size) * math.exp(self._factor)

    def ratios(self, batch_size: int, accept_lengths: Sequence[float]) -> dict[int, float]:
        """Predicted tokens/s over plain by num_steps, given E[l] of 1, 2, ... steps; {} while unknown."""
        if not self._cells:
            return {}
        # `speedup` with all costs in beta; the most frequent question of all, so the loop looks up nothing twice.
        plain, first, rest = self._step(batch_size, 0), self._first_draft(batch_size), self._rest(batch_size)
        cells, later = self._cells, first * self._later_share()
        result: dict[int, float] = {}
        num_tokens = batch_size
        for num_steps, accept_length in enumerate(accept_lengths, start=1):
            num_tokens += batch_size
            cell = cells.get((batch_size, num_steps))
            if cell is None:
                step = self._target(num_tokens) + first + rest
            else:
                step = self._seconds(batch_size, num_steps, cell)
            first += later
            result[num_steps] = accept_length * plain / step
        return result

    # At factor 1 from here on. There is a cell.

    def _step(self, batch_size: int, num_steps: int) -> float:
        cell = self._cells.get((batch_size, num_steps))
        if cell is not None:
            return self._seconds(batch_size, num_steps, cell)
        target = self._target(batch_size * (num_steps + 1))
        return target + self._draft(batch_size, num_steps) + self._rest(batch_size)

    def _seconds(self, batch_size: int, num_steps: int, cell: _Cell) -> float:
        """A measured cell's seconds, its neighbours taken into account."""
        known = self._blended.get((batch_size, num_steps))
        if known is None:
            known = self._blended[batch_size, num_steps] = math.exp(self._blend(batch_size, num_steps, cell))
        return known

    def _blend(self, batch_size: int, num_steps: int, cell: _Cell) -> float:
        sizes = self._sizes[num_steps]
        index = bisect_left(sizes, batch_size)
        precision = 1.0 / self._variance_now(cell)
        total, weight = precision * cell.log_s, precision
        for other in (*sizes[max(0, index - 1) : index], *sizes[index + 1 : index + 2]):
            neighbour, apart = self._cells[other, num_steps], math.log(batch_size / other)
            if abs(apart) > _NEIGHBOUR:
                continue
            doubt = self._variance_now(neighbour) + (_ELASTICITY_SD * apart) ** 2 + _NEIGHBOUR_SD**2
            total += (neighbour.log_s + _ELASTICITY * apart) / doubt
            weight += 1.0 / doubt
        return total / weight

    def _variance_now(self, cell: _Cell) -> float:
        return cell.variance + _CELL_DRIFT * max(0.0, self._factor_at - cell.at)

    def _target(self, num_tokens: int) -> float:
        curve = self._curve or self._target_curve()
        first_n, first_s = curve[0]
        last_n, last_s = curve[-1]
        if num_tokens <= first_n:
            return first_s
        if num_tokens >= last_n:
            slope = (last_s - first_s) / (last_n - first_n) if last_n > first_n else 0.0
            slope = slope or self._prior_token_cost * first_s / first_n
            return last_s + slope * (num_tokens - last_n)
        index = bisect_left(curve, (float(num_tokens), 0.0))
        (left_n, left_s), (right_n, right_s) = curve[index - 1], curve[index]
        return left_s + (right_s - left_s) * (num_tokens - left_n) / (right_n - left_n)

    def _draft(self, batch_size: int, num_steps: int) -> float:
        return self._first_draft(batch_size) * self._of_first(num_steps)

    def _rest(self, batch_size: int) -> float:
        if not self._plain:
            return 0.0
        nearest = self._nearest_plain.get(batch_size)
        if nearest is None:
            nearest = self._nearest_plain[batch_size] = _nearest(self._plain, batch_size)
        cell = self._cells[nearest, 0]
        return (1.0 - cell.target_share) * cell.seconds

    def _of_first(self, num_steps: int) -> float:
        """Seconds of `num_steps` drafted tokens over those of the first; 0 for none."""
        return 1.0 + self._later_share() * (num_steps - 1) if num_steps else 0.0

    def _first_draft(self, batch_size: int) -> float:
        """D1: seconds of the first drafted token."""
        if not self._drafted:
            return self._prior_draft_cost * self._target(1)
        nearest = self._nearest_drafted.get(batch_size)
        if nearest is None:
            nearest = self._nearest_drafted[batch_size] = _nearest(self._drafted, batch_size)
        first = self._first_drafts.get(nearest)
        if first is None:
            first = self._first_drafts[nearest] = self._measured_first_draft(nearest)
        return first

    def _later_share(self) -> float:
        """q."""
        if self._known_later_share is None:
            self._known_later_share = self._find_later_share()
        return self._known_later_share

    def _measured_first_draft(self, batch_size: int) -> float:
        """D1 as the chains of one batch size show it, their mean."""
        steps = self._drafted[batch_size]
        firsts = [self._draft_part(batch_size, num_steps) / self._of_first(num_steps) for num_steps in steps]
        return math.fsum(firsts) / len(firsts)

    def _find_later_share(self) -> float:
        """q, from the shortest and the longest chain of each batch size that has two; their mean, within 0..1."""
        shares = []
        for batch_size, steps in self._drafted.items():
            if len(steps) < 2:
                continue
            short, long = self._draft_part(batch_size, steps[0]), self._draft_part(batch_size, steps[-1])
            if short > 0.0:
                later = max(0.0, long - short) / (steps[-1] - steps[0])
                first = short - later * (steps[0] - 1)
                shares.append(1.0 if later >= first else later / first)
        return math.fsum(shares) / len(shares) if shares else 1.0

    def _draft_part(self, batch_size: int, num_steps: int) -> float:
        """The draft's seconds in a measured cell: what is neither the target's nor the rest."""
        cell = self._cells[batch_size, num_steps]
        return max(0.0, (1.0 - cell.target_share) * cell.seconds - self._rest(batch_size))

    def _target_curve(self) -> list[tuple[float, float]]:
        """Points (n, seconds), n ascending, seconds non-decreasing."""
        self._curve, highest = [], 0.0
        for num_tokens, cells in self._points:
            mean = 0.0
            for cell in cells:
                mean += cell.seconds * cell.target_share / len(cells)
            if mean > highest:
                highest = mean
            self._curve.append((num_tokens, highest))
        return self._curve

    def _observe_cell(self, at: float, step: StepCount) -> None:
        seen = math.log(step.median_step_s)
        share = min(1.0, max(_MIN_TARGET_SHARE, step.target_s / step.step_s))
        noise = max(_STEP_NOISE / step.num_verifies, _NOISE_FLOOR)
        key = (step.batch_size, step.num_steps)
        cell = self._cells.get(key)
        if cell is None:
            variance = _FIRST_NOISE + noise + self._factor_variance
            log_s = seen - self._factor
            self._cells[key] = _Cell(log_s, math.exp(log_s), variance, at, share, step.num_verifies)
            self._factor_at = max(self._factor_at, at)
            return
        self._factor_variance += _FACTOR_DRIFT * max(0.0, at - self._factor_at)
        self._factor_at = max(self._factor_at, at)
        cell.variance += _CELL_DRIFT * max(0.0, at - cell.at)
        total = self._factor_variance + cell.variance + noise
        surprise = seen - (cell.log_s + self._factor)
        bound = _OUTLIER * math.sqrt(total)
        surprise = min(bound, max(-bound, surprise))
        factor_gain, cell_gain = self._factor_variance / total, cell.variance / total
        self._factor += factor_gain * surprise
        cell.log_s += cell_gain * surprise
        cell.seconds = math.exp(cell.log_s)
        self._factor_variance *= 1.0 - factor_gain
        cell.variance *= 1.0 - cell_gain
        weight = min(1.0, max(0.1, step.num_verifies / (cell.num_verifies + step.num_verifies)))
        cell.target_share += weight * (share - cell.target_share)
        cell.num_verifies += step.num_verifies
        cell.at = at


def _nearest(batch_sizes: Iterable[int], batch_size: int) -> int:
    """By ratio; of two equally near ones the smaller."""
    return min(batch_sizes, key=lambda other: (abs(math.log(other / batch_size)), other))

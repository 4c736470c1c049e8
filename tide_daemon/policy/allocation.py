"""Which devices should serve and which should train: arithmetic over relative speeds. Pure.

Letters: r_k the serving speed of one device of kind k and q_k its training speed, both relative to one
reference device; s the speed-up of speculation with a draft that is kept aligned, s0 that of a draft
that is not. With n_k devices of kind k serving (and the others training), in units of the reference
device decoding plainly:

    adapted              s  * sum over serving devices r_k
    all serve plain           sum over all devices r_k
    all serve static     s0 * sum over all devices r_k
    fast static, slow plain   s0 * sum over serving devices + sum over those that would train

Training pays when `adapted` is above the best of the three others. For N_H fast and N_L slow devices
with r = fast/slow, against plain serving, that is s > 1 + N_L / (N_H * r) (our derivation from the
paper's measurements, TIDE v2 section V-F; the paper gives no rule).

How much training keeps a draft aligned is not known in general. The paper's own split is the default:
4 MI250 train for what 8 H100 serve. What a draft gains is an assumption of the caller's; live, the
gate and the steps table measure it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

PAPER_TRAIN_PER_SERVE = 4 / (8 * 6.76)
"""Training speed for one unit of serving speed, both in MI250s: 4 MI250 beside 8 H100. Source: TIDE v2 section V-A."""

ALL_PLAIN = "all serve plain"
ALL_STATIC = "all serve with a static draft"
FAST_STATIC = "fast serve with a static draft, slow serve plain"
_TOLERANCE = 1e-9
"""Relative; sums of the same speeds in another order must not decide."""


@dataclass(frozen=True, slots=True)
class DeviceGroup:
    """Equal devices.

    Attributes:
        serving: speed of one device relative to the reference; 0.0 when they cannot hold the target.
        training: the same for training, > 0.
    """

    name: str
    count: int
    serving: float
    training: float

    def __post_init__(self) -> None:
        if self.count < 1 or self.serving < 0.0 or self.training <= 0.0:
            raise ValueError(f"{self.name}: count and speeds must be positive")


@dataclass(frozen=True, slots=True)
class Allocation:
    """The best split with training, what it is compared with, and whether it wins.

    Attributes:
        serve, train: (name, count) in the order given, counts of 0 left out. `train` is empty when too few
            devices are there for any to train.
        adapted: tokens/s of the split in units of the reference device decoding plainly; 0.0 without a split.
        baselines: the same of the three ways to use all devices without training, by their names above.
        best_baseline: name of the largest; the simpler one when equal.
        break_even: speed-up of the adapted draft from which the split beats the best baseline, None without a split.
        break_even_plain: the same against all devices serving plain.
        pays: adapted is above the best baseline.
    """

    serve: tuple[tuple[str, int], ...]
    train: tuple[tuple[str, int], ...]
    adapted: float
    baselines: dict[str, float]
    best_baseline: str
    break_even: float | None
    break_even_plain: float | None
    pays: bool


def allocate(
    groups: Sequence[DeviceGroup],
    static_speedup: float,
    adapted_speedup: float,
    train_per_serve: float = PAPER_TRAIN_PER_SERVE,
) -> Allocation:
    """The split of these devices and its comparison.

    Args:
        groups: at least one, names distinct.
        static_speedup, adapted_speedup: tokens/s over plain, with a draft that is not and that is kept aligned.
        train_per_serve: training speed needed for each unit of serving speed.

    Raises:
        ValueError: no devices, none that can serve, a name twice, or a speed-up or need that is not positive.
    """
    names = [group.name for group in groups]
    if not groups or len(set(names)) != len(names):
        raise ValueError("give at least one kind of device, and each kind once")
    if static_speedup <= 0.0 or adapted_speedup <= 0.0 or train_per_serve <= 0.0:
        raise ValueError("speed-ups and the training need must be positive")
    trains = choose_trainers(groups, train_per_serve)
    slow = sum(group.serving * count for group, count in zip(groups, trains, strict=True))
    everything = sum(group.serving * group.count for group in groups)
    if everything <= 0.0:
        raise ValueError("none of these devices can serve the target")
    fast = everything - slow
    baselines = {
        ALL_PLAIN: everything,
        ALL_STATIC: static_speedup * everything,
        FAST_STATIC: static_speedup * fast + slow,
    }
    best = ALL_PLAIN
    for name in (ALL_STATIC, FAST_STATIC):
        if baselines[name] > baselines[best] * (1.0 + _TOLERANCE):
            best = name
    split = any(trains)
    adapted = adapted_speedup * fast if split else 0.0
    return Allocation(
        serve=tuple((g.name, g.count - n) for g, n in zip(groups, trains, strict=True) if g.count > n),
        train=tuple((g.name, n) for g, n in zip(groups, trains, strict=True) if n),
        adapted=adapted,
        baselines=baselines,
        best_baseline=best,
        break_even=baselines[best] / fast if split else None,
        break_even_plain=everything / fast if split else None,
        pays=adapted > baselines[best] * (1.0 + _TOLERANCE),
    )


def choose_trainers(groups: Sequence[DeviceGroup], train_per_serve: float) -> list[int]:
    """How many devices of each group train, so that training keeps up and least serving speed is lost.

    Takes devices in the order of serving speed lost for training speed gained, then gives back those
    that turn out not to be needed, the fastest server first; those that cannot serve all train. All
    zeros when no split keeps up with at least one device left to serve. Within one device's serving
    speed of the best split.
    """
    trains = [0] * len(groups)
    cheapest = sorted(range(len(groups)), key=lambda index: (groups[index].serving / groups[index].training, index))
    for index in cheapest:
        while trains[index] < groups[index].count and not _keeps_up(groups, trains, train_per_serve):
            trains[index] += 1
    for index in sorted(range(len(groups)), key=lambda index: (-groups[index].serving, index)):
        if groups[index].serving == 0.0:
            trains[index] = groups[index].count
            continue
        while trains[index] > 0:
            trains[index] -= 1
            if not _keeps_up(groups, trains, train_per_serve):
                trains[index] += 1
                break
    serving = any(g.count > n and g.serving > 0.0 for g, n in zip(groups, trains, strict=True))
    return trains if serving and _keeps_up(groups, trains, train_per_serve) else [0] * len(groups)


def _keeps_up(groups: Sequence[DeviceGroup], trains: Sequence[int], train_per_serve: float) -> bool:
    training = sum(group.training * count for group, count in zip(groups, trains, strict=True))
    serving = sum(group.serving * (group.count - count) for group, count in zip(groups, trains, strict=True))
    return training >= train_per_serve * serving * (1.0 - _TOLERANCE)

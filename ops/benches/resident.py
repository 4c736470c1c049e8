"""Resident memory of processes over time, and how fast it grows."""

import contextlib
import itertools
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import psutil

MB = 1 << 20
WINDOW_S = 200.0
"""A process with a garbage collector swings between what it holds and twice that, a training worker with its rounds.
What they hold shows after each collection, which Go's runtime makes at least every two minutes (runtime/proc.go,
forcegcperiod), and between two rounds, one of which takes up to three minutes in the demonstration's system."""
SAMPLE_SLACK_S = 10.0
"""The last window counts as whole if its last sample is at most this early."""
_TITLES = ("scheduler", "detokenizer", "resource_tracker", "worker")


@dataclass(slots=True)
class Series:
    """Resident memory of one process: (monotonic seconds, bytes)."""

    name: str
    samples: list[tuple[float, int]] = field(default_factory=list)

    def after(self, start: float) -> "Series":
        """The samples from `start` on."""
        return Series(self.name, [sample for sample in self.samples if sample[0] >= start])

    def growth_mb_per_hour(self) -> float:
        """Median slope over all pairs of lows. Source: Sen 1968, J. Am. Stat. Assoc. 63."""
        return _slope(self.lows())

    def slope_mb_per_hour(self) -> float:
        """The same over all pairs of samples: where in its cycle a garbage collector began and ended shows in it."""
        return _slope(self.samples)

    def lows(self) -> list[tuple[float, int]]:
        """The lowest sample of each whole WINDOW_S; every sample while there are fewer than three such windows."""
        windows: dict[int, tuple[float, int]] = {}
        start, end = self.samples[0][0], self.samples[-1][0]
        for at, size in self.samples:
            number = int((at - start) // WINDOW_S)
            if start + (number + 1) * WINDOW_S <= end + SAMPLE_SLACK_S:
                windows[number] = min(windows.get(number, (at, size)), (at, size), key=lambda sample: sample[1])
        return list(windows.values()) if len(windows) > 2 else self.samples

    def median_mb(self) -> float:
        """Median size."""
        return statistics.median(size for _, size in self.samples) / MB


def _slope(samples: Sequence[tuple[float, int]]) -> float:
    """Median slope over all pairs, MB an hour."""
    slopes = [(b - a) / (t - s) for (s, a), (t, b) in itertools.combinations(samples, 2) if t > s]
    return statistics.median(slopes) * 3600 / MB


@dataclass(slots=True)
class Watched:
    """Samples of some processes and of all that they started, by process id."""

    series: dict[int, Series] = field(default_factory=dict)

    def sample(self, heads: Mapping[str, int]) -> None:
        """One sample of every process. `heads`: name -> process id; one may be a child of another.

        Raises:
            RuntimeError: a head has ended.
        """
        found: dict[int, tuple[str, psutil.Process]] = {}
        for name, pid in heads.items():
            try:
                head = psutil.Process(pid)
                below = head.children(recursive=True)
            except psutil.NoSuchProcess as error:
                raise RuntimeError(f"{name} (process {pid}) ended during the measurement") from error
            # A head that was started by another one keeps what is below it, whichever comes first here.
            nested = {child.pid for child in below if child.pid in heads.values()}
            for child in below:
                if not nested & {parent.pid for parent in _parents(child)}:
                    found.setdefault(child.pid, (f"{name}_{_title(child)}", child))
            found[pid] = (name, head)
        for pid, (name, process) in found.items():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                size = process.memory_info().rss
                self.series.setdefault(pid, Series(name)).samples.append((time.monotonic(), size))


def _parents(process: psutil.Process) -> list[psutil.Process]:
    """The process and its ancestors; empty when it has ended."""
    try:
        return [process, *process.parents()]
    except psutil.NoSuchProcess:
        return []


def _title(process: psutil.Process) -> str:
    """A short name for a child: SGLang's processes say what they are, the rest are known by their module."""
    try:
        words = " ".join(process.cmdline())
        known = next((title for title in _TITLES if title in words), process.name())
    except psutil.NoSuchProcess:
        return "ended"
    return re.sub(r"[^a-z0-9]+", "_", known.lower()).strip("_")

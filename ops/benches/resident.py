"""Resident memory of processes over time, and how fast it grows."""

import contextlib
import itertools
import re
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import psutil

MB = 1 << 20
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
        """Median slope over all pairs of samples. Source: Sen 1968, J. Am. Stat. Assoc. 63."""
        slopes = [(b - a) / (t - s) for (s, a), (t, b) in itertools.combinations(self.samples, 2) if t > s]
        return statistics.median(slopes) * 3600 / MB

    def median_mb(self) -> float:
        """Median size."""
        return statistics.median(size for _, size in self.samples) / MB


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

"""`ops/faults --soak`: random faults for an hour; what processes take stays flat, and answers stay the same.

Between faults, when everything is well again, each process is measured: resident memory, file descriptors, threads;
and what lies in shared memory. A process that a fault replaced is measured on under its role's name: what counts is
what a role takes after an hour of faults, not which process it is by now.
"""

import random
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from fault_runs import latency
from fault_runs.outcome import Outcome
from fault_runs.stage import Stage
from fault_runs.table import Fault, named

SHORT = (
    "server-daemon-killed",
    "trainer-killed",
    "trainer-killed-in-fetch",
    "controller-killed",
    "broker-killed",
    "broker-restarted",
    "broker-max-payload-lowered",
    "broker-permission-revoked",
    "ring-reader-frozen",
    "controller-frozen",
    "bits-flipped-in-every-field",
    "valid-envelope-wrong-fields",
    "malicious-size",
    "clients-vanish-mid-stream",
    "sglang-killed",
)
"""What the soak draws from: faults that are over within a minute or two."""
SLACK = {"resident_mb": 48.0, "descriptors": 8.0, "threads": 4.0, "shared_mb": 1.0}
"""How much more the last quarter may take than the second one; memory by a tenth besides, which caches fill."""
MIN_READINGS = 8


@dataclass(slots=True)
class Readings:
    """Measurements by (process, quantity), in their order. Pure but for `take`."""

    series: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def add(self, name: str, quantity: str, value: float) -> None:
        """The next measurement."""
        self.series.setdefault((name, quantity), []).append(value)

    def grown(self) -> list[str]:
        """What is not flat, in sentences. The first quarter is not looked at: processes fill their caches."""
        found = []
        for (name, quantity), values in sorted(self.series.items()):
            if len(values) < MIN_READINGS:
                continue
            quarter = len(values) // 4
            early, late = statistics.median(values[quarter : 2 * quarter]), statistics.median(values[-quarter:])
            share = 0.1 if quantity.endswith("_mb") else 0.0
            if late > early * (1 + share) + SLACK[quantity]:
                found.append(f"{name}: {quantity} grew from {early:g} to {late:g}")
        return found

    def take(self, heads: dict[str, int]) -> None:
        """Measure processes with all that they started."""
        for name, pid in heads.items():
            try:
                head = psutil.Process(pid)
                group = [head, *head.children(recursive=True)]
                self.add(name, "resident_mb", sum(each.memory_info().rss for each in group) / (1 << 20))
                self.add(name, "descriptors", sum(each.num_fds() for each in group))
                self.add(name, "threads", sum(each.num_threads() for each in group))
            except psutil.NoSuchProcess:
                continue  # it is being started again
        shared = sum(path.stat().st_blocks * 512 for path in Path("/dev/shm").glob("tide*"))
        self.add("shared memory", "shared_mb", shared / (1 << 20))


def heads_of(stage: Stage) -> dict[str, int]:
    """The processes of a stage by what they are. A server daemon's own SGLang counts as sglang."""
    heads = {name: child.popen.pid for name, child in stage.roles.items() if child.running and name != "server"}
    if stage.nats.process is not None:
        heads["nats-server"] = stage.nats.process.pid
    if pid := stage.engine_pid():
        heads["sglang"] = pid
    return heads


async def soak(
    stage: Stage,
    minutes: float,
    seed: int,
    can_run: Callable[[Fault], bool],
    inflict: Callable[[Fault], Awaitable[Outcome]],
    requests: Callable[[], list[latency.Request]],
    told: Callable[[str], None],
) -> tuple[list[Outcome], dict[str, Any]]:
    """Draw one fault after another until the time is over, or one is not recovered from.

    Returns:
        The outcomes, and {"grown": sentences, "other_answers": how many, "answers": of how many, "readings": ...}.
    """
    faults = [fault for fault in named(list(SHORT)) if can_run(fault)]
    rng, readings, outcomes = random.Random(seed), Readings(), list[Outcome]()
    known: dict[int, str] = {}
    num_others = num_answers = 0
    until = time.monotonic() + 60.0 * minutes
    while time.monotonic() < until:
        fault = rng.choice(faults)
        outcome = await inflict(fault)
        outcomes.append(outcome)
        readings.take(heads_of(stage))
        so_far = requests()
        others = latency.other_answers(so_far[num_answers:], known)
        num_answers = len(so_far)
        num_others += len(others)
        left = max(0.0, until - time.monotonic()) / 60
        verdict = "pass" if outcome.passed else "FAIL"
        told(f"{fault.name}: {verdict}; {num_answers} answers, {num_others} others; {left:.0f} minutes left")
        if not outcome.recovered:
            break
    return outcomes, {
        "grown": readings.grown(),
        "other_answers": num_others,
        "answers": num_answers,
        "readings": {f"{name} {quantity}": values for (name, quantity), values in readings.series.items()},
    }

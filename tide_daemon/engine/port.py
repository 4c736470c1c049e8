"""What a server role may ask of an engine, whichever engine it is.

Implementations: sglang/ (a real `sglang.launch_server` with our plug-in, reached over the ring and
the control channel) and modelled.py (no model, for tests and fleets). The engine process and
asyncio never share an interpreter: everything here talks to another process or pretends to.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tide_daemon.wire.records import HiddenChunk, StepStats, TargetSpec, WorkloadSteps


@dataclass(frozen=True, slots=True)
class CaptureSettings:
    """What is captured. Rates are shares of requests; `max_rows` a request, 0 for no limit.

    Attributes:
        preferred, preferred_rate: workloads that have a rate of their own.
        excluded: workloads of which nothing is captured, whatever else is said.
    """

    collect: bool
    sample_rate: float = 1.0
    max_rows: int = 0
    preferred: tuple[str, ...] = ()
    preferred_rate: float = 0.0
    excluded: tuple[str, ...] = ()

    def rate_of(self, workload: str) -> float:
        """Share of this workload's requests that is captured."""
        if workload in self.excluded:
            return 0.0
        return self.preferred_rate if workload in self.preferred else self.sample_rate


@dataclass(frozen=True, slots=True)
class DraftState:
    """The draft that the engine runs, read back from its own parameters."""

    version: int
    digest: str


NO_EPOCH = 0
"""Epoch in the statistics of an engine that does not answer: they count nothing, and it may be the same one."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters since the engine started, and what it runs now.

    Attributes:
        state: "starting", "ready", "capture_off" or "down".
        steps: cumulative per (batch size, num_steps) since the engine started; the role takes differences.
        workloads: cumulative drafted chains and tokens of captured requests by workload.
        epoch: changes when the engine process was replaced, so that counters begin again; NO_EPOCH when the engine does
            not answer: then its counters are not known.
    """

    state: str
    epoch: int
    draft: DraftState
    num_running: int
    steps: tuple[StepStats, ...]
    collecting: bool
    rows_written: int
    rows_dropped: int
    requests_opted_out: int
    num_swaps: int
    engine_starts: int
    problems: tuple[str, ...] = field(default=())
    workloads: tuple[WorkloadSteps, ...] = ()


class Engine(Protocol):
    """One engine on this node."""

    async def start(self) -> None:
        """Start (or attach to) the engine and return at once; `stats().state` tells when it is ready."""
        ...

    async def stop(self, deadline_s: float) -> None:
        """End the engine within about `deadline_s`, by force if need be. Never raises."""
        ...

    @property
    def spec(self) -> TargetSpec | None:
        """What the engine serves; None until it is known."""
        ...

    async def stats(self) -> EngineStats:
        """Never raises for a dead engine: state says "down"."""
        ...

    async def swap(self, checkpoint_dir: str, state: DraftState) -> DraftState:
        """Stage a verified checkpoint, copy it in place between two steps, read it back.

        Raises:
            EngineRefusedError: it does not take this draft, or what was read back is not `state`.
            EngineError: it is not ready, or did not answer in time.
        """
        ...

    async def set_steps(self, table: Sequence[tuple[int, int]]) -> None:
        """Set (largest batch size, num_steps) ascending; above the last entry plain decoding."""
        ...

    async def set_capture(self, settings: CaptureSettings) -> None:
        """Replace what is captured, from the next batch on. Raises EngineError when the engine refuses."""
        ...

    def take_chunks(self, max_bytes: int) -> list[HiddenChunk]:
        """Chunks that are ready, oldest first, each below `max_bytes` encoded. Never blocks."""
        ...

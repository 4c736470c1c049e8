"""An engine without a model, behind the same port: for fast tests and for trying policies on fleets.

It serves simulated requests at a given batch size. Acceptance and step times come from given curves:
each draft token is accepted with the curve's probability until the first one that is not, a step takes
what the curve says. Hidden states and tokens are random: nothing can be learned from them. Time is
whatever clock it is given, so hours pass in milliseconds; it catches up with the clock whenever it is
asked something.

Swaps really load the checkpoint and check its digest, as the real engine does.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tide_daemon.engine.port import CaptureSettings, DraftState, EngineStats
from tide_daemon.errors import DraftError, EngineError, EngineRefusedError
from tide_daemon.wire.records import NO_DRAFT, HiddenChunk, StepStats, TargetSpec, WorkloadSteps
from tide_daemon.wire.tensors import float32_to_bf16, rows_per_chunk

_MAX_STEPS_AT_ONCE = 100_000
_MAX_READY = 4096


TINY_TARGET = TargetSpec("target", "0" * 64, "0" * 64, (0, 1, 2), 32, 256)
"""What it pretends to serve when nothing is said: a target that does not exist, with small states."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What clients send at one moment: the workload's label and how many requests run at once."""

    workload: str
    batch_size: int


def default_accept_prob(version: int, workload: str) -> float:
    """A draft that gets better with each version, up to 0.6."""
    return 0.6 * (1 - 0.7**version)


def default_step_s(batch_size: int, num_steps: int) -> float:
    """About SmolLM2-135M on one CPU thread: plain 40 ms at batch 1, three drafted tokens 1.3 to 1.7 times that."""
    plain = 0.036 + 0.004 * batch_size
    return plain * (1 + num_steps * (0.09 + 0.018 * batch_size))


@dataclass(frozen=True)
class ModelledSettings:
    """What is modelled.

    Attributes:
        spec: the target that it pretends to serve.
        traffic: (seconds since start) -> what clients send then.
        accept_prob: (draft version, workload) -> probability that a drafted token is accepted, 0..1.
        step_s: (batch size, num_steps) -> seconds of a step.
        prompt_tokens, response_tokens: of every request.
        max_steps: most draft steps.
        start_s: seconds until it is ready.
        topk: log-probabilities a row.
        codec: of the chunks.
        seed: of everything random.
    """

    spec: TargetSpec
    node: str
    traffic: Callable[[float], Traffic] = lambda now: Traffic("chat", 4)
    accept_prob: Callable[[int, str], float] = default_accept_prob
    step_s: Callable[[int, int], float] = default_step_s
    prompt_tokens: int = 16
    response_tokens: int = 48
    max_steps: int = 5
    start_s: float = 0.0
    topk: int = 4
    codec: str = "bf16-planes"
    seed: int = 0


@dataclass(slots=True)
class _Counts:
    num_verifies: int = 0
    num_tokens: int = 0
    accepted_at: list[int] = field(default_factory=list)
    step_s: float = 0.0


@dataclass(slots=True)
class _Request:
    request_id: str
    captured: bool
    workload: str
    left: int
    captured_at: float


class ModelledEngine:
    """Implements engine/port.py's Engine."""

    def __init__(self, settings: ModelledSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._rng = np.random.default_rng(settings.seed)
        self._running: list[_Request] = []
        self._ready: list[HiddenChunk] = []
        self._counts: dict[tuple[int, int], _Counts] = {}
        self._served: dict[str, list[int]] = {}
        self._table: tuple[tuple[int, int], ...] = ()
        self._capture = CaptureSettings(collect=True)
        self._draft = DraftState(NO_DRAFT, "")
        self._started_at: float | None = None
        self._now = 0.0
        self._epoch = 0
        self._starts = 0
        self._swaps = 0
        self._rows = 0
        self._dropped = 0
        self._problem = ""

    @property
    def spec(self) -> TargetSpec | None:
        """Known from the start on."""
        return self._settings.spec if self._started_at is not None else None

    async def start(self) -> None:
        """Start; ready after the modelled time."""
        self._boot()

    async def stop(self, deadline_s: float) -> None:
        """Stop serving."""
        self._started_at = None

    def crash(self) -> None:
        """For tests: the engine's process ends and is started again; the draft is lost."""
        self._problem = "the modelled engine crashed"
        self._boot()

    def _boot(self) -> None:
        self._started_at = self._now = self._clock()
        self._starts += 1
        self._epoch = self._starts
        self._counts.clear()
        self._served.clear()
        self._running.clear()
        self._draft, self._table = DraftState(NO_DRAFT, ""), ()
        self._swaps = self._rows = self._dropped = 0

    def _is_ready(self) -> bool:
        return self._started_at is not None and self._clock() >= self._started_at + self._settings.start_s

    async def stats(self) -> EngineStats:
        """See engine/port.py."""
        self._catch_up()
        state = "down" if self._started_at is None else "ready" if self._is_ready() else "starting"
        return EngineStats(
            state=state,
            epoch=self._epoch,
            draft=self._draft,
            num_running=len(self._running),
            steps=tuple(self._stats_of(key) for key in sorted(self._counts)),
            collecting=self._capture.collect,
            rows_written=self._rows,
            rows_dropped=self._dropped,
            requests_opted_out=0,
            num_swaps=self._swaps,
            engine_starts=self._starts,
            problems=(self._problem,) if self._problem else (),
            workloads=tuple(WorkloadSteps(name, *self._served[name]) for name in sorted(self._served)),
        )

    def _stats_of(self, key: tuple[int, int]) -> StepStats:
        counts = self._counts[key]
        step_s = self._settings.step_s(*key)
        return StepStats(
            batch_size=key[0],
            num_steps=key[1],
            num_verifies=counts.num_verifies,
            num_tokens=counts.num_tokens,
            accepted_at=tuple(counts.accepted_at),
            step_s=counts.step_s,
            target_s=counts.num_verifies * self._settings.step_s(key[0], 0),
            median_step_s=step_s,
        )

    async def swap(self, checkpoint_dir: str, state: DraftState) -> DraftState:
        """Load the checkpoint, check its digest, take its version."""
        self._require_ready("swap")
        from tide_daemon.draft.checkpoint import load  # brings in torch, which the rest of this file does not need

        try:
            await asyncio.to_thread(load, checkpoint_dir, state.digest)
        except DraftError as error:
            raise EngineRefusedError(f"draft {state.version} refused: {error}") from error
        self._catch_up()
        self._draft = state
        self._swaps += 1
        return state

    async def set_steps(self, table: Sequence[tuple[int, int]]) -> None:
        """See engine/port.py."""
        self._require_ready("set_steps")
        sizes = [batch for batch, _ in table]
        if sizes != sorted(set(sizes)) or any(not 0 <= steps <= self._settings.max_steps for _, steps in table):
            raise EngineError(f"steps table {list(table)} is not ascending or asks for over {self._settings.max_steps}")
        self._catch_up()
        self._table = tuple(table)

    async def set_capture(self, settings: CaptureSettings) -> None:
        """See engine/port.py."""
        self._require_ready("set_capture")
        self._catch_up()
        self._capture = settings

    def take_chunks(self, max_bytes: int) -> list[HiddenChunk]:
        """See engine/port.py."""
        self._catch_up()
        ready, self._ready = self._ready, []
        width = ready[0].aux.shape[1] if ready else 1
        most = rows_per_chunk(max_bytes, width, self._settings.topk, self._settings.codec)
        return [part for chunk in ready for part in _split(chunk, most)]

    def _require_ready(self, command: str) -> None:
        if not self._is_ready():
            raise EngineError(f"no engine to send {command!r} to; it is not ready yet")

    # Simulation.

    def _catch_up(self) -> None:
        if not self._is_ready():
            return
        until = self._clock()
        for _ in range(_MAX_STEPS_AT_ONCE):
            if self._now >= until:
                return
            self._now += self._step(until)
        self._now = until  # too far behind to simulate every step

    def _step(self, until: float) -> float:
        """One step of the batch; returns its seconds."""
        assert self._started_at is not None
        traffic = self._settings.traffic(self._now - self._started_at)
        if traffic.batch_size == 0:
            return until - self._now
        while len(self._running) < traffic.batch_size:
            self._running.append(self._new_request(traffic.workload))
        batch = len(self._running)
        steps = self._steps_for(batch)
        seconds = self._settings.step_s(batch, steps)
        counts = self._counts.setdefault((batch, steps), _Counts(accepted_at=[0] * steps))
        counts.num_verifies += 1
        counts.step_s += seconds
        for request in self._running:
            prob = self._settings.accept_prob(self._draft.version, request.workload)
            accepted = 0
            while accepted < steps and self._rng.random() < prob:
                counts.accepted_at[accepted] += 1
                accepted += 1
            counts.num_tokens += accepted + 1
            if steps and request.captured:
                served = self._served.setdefault(request.workload, [0, 0])
                served[0] += 1
                served[1] += accepted + 1
            request.left -= accepted + 1
        for request in [r for r in self._running if r.left <= 0]:
            self._running.remove(request)
            if request.captured and self._capture.collect:
                self._emit(request)
        return seconds

    def _steps_for(self, batch: int) -> int:
        if self._draft.version == NO_DRAFT:
            return 0
        return next((steps for largest, steps in self._table if batch <= largest), 0)

    def _new_request(self, workload: str) -> _Request:
        captured = self._capture.collect and self._rng.random() < self._capture.rate_of(workload)
        return _Request(self._rng.bytes(16).hex(), captured, workload, self._settings.response_tokens, time.time())

    def _emit(self, request: _Request) -> None:
        """The whole request as one chunk."""
        settings, rng = self._settings, self._rng
        rows = settings.prompt_tokens + settings.response_tokens - 1
        if self._capture.max_rows:
            rows = min(rows, self._capture.max_rows)
        if len(self._ready) >= _MAX_READY:
            self._dropped += rows
            return
        spec = settings.spec
        tokens = rng.integers(0, spec.vocab_size, rows + 1, dtype=np.int32)
        width = len(spec.aux_layer_ids) * spec.hidden_size
        logprobs = -np.sort(rng.exponential(1.0, (rows, settings.topk)).astype(np.float16), axis=1)
        self._rows += rows
        self._ready.append(
            HiddenChunk(
                spec=spec,
                node=settings.node,
                request_id=request.request_id,
                workload=request.workload,
                chunk_index=0,
                last=True,
                incomplete=False,
                first_position=0,
                captured_at=request.captured_at,
                draft_version=self._draft.version,
                codec=settings.codec,
                token_ids=tokens[:-1],
                loss_mask=(np.arange(rows) >= settings.prompt_tokens).astype(np.uint8),
                next_token_id=int(tokens[-1]),
                topk_ids=rng.integers(0, spec.vocab_size, (rows, settings.topk), dtype=np.int32),
                topk_logprobs=logprobs,
                aux=float32_to_bf16(rng.standard_normal((rows, width), dtype=np.float32)),
            )
        )


def _split(chunk: HiddenChunk, most: int) -> list[HiddenChunk]:
    """Cut a request's only chunk into chunks of at most `most` rows."""
    rows = len(chunk.token_ids)
    return [
        replace(
            chunk,
            chunk_index=start // most,
            last=start + most >= rows,
            first_position=start,
            token_ids=chunk.token_ids[start : start + most],
            loss_mask=chunk.loss_mask[start : start + most],
            next_token_id=chunk.next_token_id if start + most >= rows else int(chunk.token_ids[start + most]),
            topk_ids=chunk.topk_ids[start : start + most],
            topk_logprobs=chunk.topk_logprobs[start : start + most],
            aux=chunk.aux[start : start + most],
        )
        for start in range(0, rows, most)
    ]

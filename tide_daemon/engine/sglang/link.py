"""The daemon's end of one running engine: its control channels, its ring and what is read from them.

An engine that went away and came back is another one: another process, another ring (epoch). The old
ring is drained first, its open requests are ended incomplete, then the new one is opened. Data-parallel
engines have a control channel and a ring for each rank; a tensor-parallel rank has a channel only.
"""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog

from tide_daemon.engine.assemble import Assembler
from tide_daemon.engine.control import ControlClient
from tide_daemon.engine.port import NO_EPOCH, CaptureSettings, DraftState, EngineStats
from tide_daemon.engine.ring import RingReader
from tide_daemon.engine.sglang.merge import merge_steps, merge_workloads, parse_steps
from tide_daemon.engine.sglang.ranks import steps_args, swap_args, tell_every_rank
from tide_daemon.errors import EngineError, EngineRefusedError
from tide_daemon.wire.records import NO_DRAFT, HiddenChunk, TargetSpec

log = structlog.get_logger()

DOWN = "down"
_TAKE_BYTES = 16 << 20
_SWAP_TIMEOUT_S = 90.0
_PROBE_TIMEOUT_S = 2.0
_FRESH_S = 3.0
"""Statistics that came so recently say that the engine answers."""
_PATIENCE_S = 15.0
"""An engine that was heard of so recently counts as it was then: a long prefill holds its control thread up for
seconds on a busy machine, and "down" costs a draft its rollout. That the process has ended is noticed elsewhere."""


class _Rank:
    """One rank's channel and, on tensor-parallel rank 0, its ring."""

    def __init__(self, path: Path) -> None:
        self.control = ControlClient(path)
        self.epoch = 0
        self.tp_size = 1
        self.ring: RingReader | None = None
        self.assembler: Assembler | None = None


class EngineLink:
    """Talks to one engine, whichever process it is at the moment.

    Attributes:
        confirmed: the engine has said that it serves the target we expect.
        problem: why there is no connection or no capture, "" when there is.
    """

    def __init__(
        self,
        run_dir: Path,
        url: str,
        target: TargetSpec,
        node: str,
        *,
        codec: str,
        chunk_bytes: int,
        chunk_max_age_s: float,
        command_timeout_s: float,
        key: str = "",
    ) -> None:
        """`key` is the API key that the engine asks of its administrator, "" for none."""
        self._run_dir = run_dir
        self._url = url
        self._key = key
        self._target = target
        self._node = node
        self._codec = codec
        self._chunk_bytes = chunk_bytes
        self._chunk_max_age_s = chunk_max_age_s
        self._command_timeout_s = command_timeout_s
        self._ranks: dict[str, _Rank] = {}
        self._old: list[HiddenChunk] = []
        self.confirmed = False
        self.problem = ""
        self._last: EngineStats | None = None
        self._heard_at = 0.0

    async def connect(self) -> bool:
        """Find the engine's channels and rings; True when all answer. Cheap when nothing changed."""
        paths = sorted(self._run_dir.glob("ctl-*.sock"))
        if not paths:
            self.problem = f"no plug-in listens in {self._run_dir}; is TIDE_ENGINE_DIR set for SGLang?"
            return False
        for gone in set(self._ranks) - {path.name for path in paths}:
            self._forget(self._ranks.pop(gone))
        try:
            for path in paths:
                rank = self._ranks.setdefault(path.name, _Rank(path))
                self._open(rank, await rank.control.call("hello", _PROBE_TIMEOUT_S))
        except EngineError as error:
            self.problem = str(error)
            return False
        self.problem = ""
        return True

    async def answers(self) -> bool:
        """Whether the engine answers. It is asked only when no statistics have come lately: each call takes its
        interpreter from the step loop for a moment.
        """
        if not self.problem and time.monotonic() - self._heard_at < _FRESH_S:
            return True
        return await self.connect()

    def _open(self, rank: _Rank, hello: dict[str, Any]) -> None:
        epoch = int(hello["epoch"])
        if epoch == rank.epoch:
            return
        facts = hello.get("facts")
        if facts is not None:
            self._check_target(facts)
            rank.tp_size = int(facts["tp_size"])
            self.confirmed = True
        self._forget(rank)
        if hello.get("ring_path"):
            rank.ring = RingReader(Path(hello["ring_path"]))
            rank.assembler = Assembler(self._target, self._node, self._codec, max_age_s=self._chunk_max_age_s)
        rank.epoch = epoch
        log.info("engine_connected", pid=hello.get("pid"), epoch=epoch, ring=hello.get("ring_path"))

    def _check_target(self, facts: dict[str, Any]) -> None:
        target = self._target
        wanted = {
            "aux_layer_ids": list(target.aux_layer_ids),
            "hidden_size": target.hidden_size,
            "vocab_size": target.vocab_size,
        }
        found = {name: facts.get(name) for name in wanted}
        if found != wanted:
            raise EngineError(f"the engine serves another target than configured: {found}, expected {wanted}")

    def _forget(self, rank: _Rank) -> None:
        """Drain and close a rank's ring."""
        self._drain(rank, self._chunk_bytes, everything=True)
        self._close(rank)

    def _close(self, rank: _Rank) -> None:
        if rank.ring is not None and rank.assembler is not None:
            rank.assembler.end_all()
            self._old += rank.assembler.take_ready()
            rank.ring.close()
        rank.ring, rank.assembler, rank.epoch = None, None, 0

    def engine_gone(self) -> None:
        """The process has ended: drain what it left and forget it."""
        for rank in self._ranks.values():
            self._forget(rank)
        self._ranks.clear()
        self.confirmed = False
        self._last = None
        for stale in self._run_dir.glob("ctl-*.sock"):
            stale.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the rings. What is left in them waits for the next reader; what was taken may be had from us."""
        for rank in self._ranks.values():
            self._close(rank)
        self._ranks.clear()

    def take_chunks(self, max_bytes: int) -> list[HiddenChunk]:
        """Chunks that are ready. Copies at most 16 MiB out of each ring, a few milliseconds."""
        limit = min(max_bytes, self._chunk_bytes)
        chunks, self._old = self._old, []
        for rank in self._ranks.values():
            if rank.assembler is not None:
                self._drain(rank, limit, everything=False)
                rank.assembler.flush_old(time.monotonic())
                chunks += rank.assembler.take_ready()
        return chunks

    def _drain(self, rank: _Rank, limit: int, *, everything: bool) -> None:
        ring, assembler = rank.ring, rank.assembler
        if ring is None or assembler is None:
            return
        most = max(1, _TAKE_BYTES // (2 * ring.layout.aux_width))
        try:
            while ring.waiting():
                assembler.add(ring.take(most), ring.labels(), time.monotonic(), limit)
                if not everything:
                    return
        except EngineError as error:
            self.problem = str(error)
            log.error("ring_rows_refused", ring=str(ring.path), error=str(error))

    # Commands.

    async def stats(self, starts: int, problem: str) -> EngineStats | None:
        """What the engine says of itself, or said within the last seconds; None when it has fallen silent."""
        answer = await self._ask_stats(starts, problem)
        if answer is not None:
            self._last, self._heard_at = answer, time.monotonic()
        return self._last if time.monotonic() - self._heard_at < _PATIENCE_S else None

    async def _ask_stats(self, starts: int, problem: str) -> EngineStats | None:
        if not self._is_connected() and not await self.connect():
            return None
        try:
            answers = await self._ask_ranks()
            if [answer.get("epoch") for answer in answers] != [rank.epoch for rank in self._ranks.values()]:
                # Another process than the one that said hello, or one of a release that does not tell here.
                if not await self.connect():
                    return None
                answers = await self._ask_ranks()
            return self._summary(answers, starts, problem)
        except (EngineError, KeyError, TypeError, ValueError) as error:
            self.problem = f"the engine's statistics cannot be read: {error}"
            return None

    def _is_connected(self) -> bool:
        """Whether all channels that are there have said hello, and nothing has gone wrong since."""
        paths = {path.name for path in self._run_dir.glob("ctl-*.sock")}
        known = {name for name, rank in self._ranks.items() if rank.epoch}
        return bool(paths) and paths == known == self._ranks.keys() and not self.problem

    async def _ask_ranks(self) -> list[dict[str, Any]]:
        return [await rank.control.call("stats", _PROBE_TIMEOUT_S) for rank in self._ranks.values()]

    def _summary(self, answers: list[dict[str, Any]], starts: int, problem: str) -> EngineStats:
        rings = [a for a, rank in zip(answers, self._ranks.values(), strict=True) if rank.ring is not None] or answers
        drafts = {(int(a["version"]), str(a["digest"])) for a in answers}
        version, digest = drafts.pop() if len(drafts) == 1 else (NO_DRAFT, "")  # they disagree: no known draft
        problems = [str(text) for a in answers for text in a["problems"]]
        problems += [text for text in (problem, self.problem) if text]
        return EngineStats(
            state="ready" if all(a["features"]["capture"] for a in rings) else "capture_off",
            epoch=sum(rank.epoch for rank in self._ranks.values()),
            draft=DraftState(version, digest),
            num_running=sum(int(a["num_running"]) for a in rings),
            steps=merge_steps([parse_steps(a["steps"]) for a in rings]),
            collecting=any(bool(a["collecting"]) for a in rings),
            rows_written=sum(int(a["rows_written"]) for a in rings),
            rows_dropped=sum(int(a["rows_dropped"]) for a in rings),
            requests_opted_out=sum(int(a["requests_opted_out"]) for a in rings),
            num_swaps=max(int(a["num_swaps"]) for a in answers),
            engine_starts=starts,
            problems=tuple(problems),
            workloads=merge_workloads([a["workloads"] for a in rings]),
        )

    def silent(self, state: str, starts: int, problem: str) -> EngineStats:
        """Statistics of an engine that does not answer. That a starting one does not is no problem."""
        problems = tuple(text for text in (problem, self.problem if state != "starting" else "") if text)
        nothing = DraftState(NO_DRAFT, "")
        return EngineStats(state, NO_EPOCH, nothing, 0, (), False, 0, 0, 0, 0, starts, problems)

    async def swap(self, checkpoint_dir: str, state: DraftState) -> DraftState:
        """Stage on every rank, then swap on every rank."""
        await self._all(
            "stage",
            _SWAP_TIMEOUT_S,
            directory=str(await asyncio.to_thread(Path(checkpoint_dir).resolve)),
            version=state.version,
            digest=state.digest,
        )
        if self._many_ranks():
            await self._tell_every_rank(swap_args(state.version))
            answers = await self._all("read_back", _SWAP_TIMEOUT_S)
        else:
            answers = await self._all("swap", _SWAP_TIMEOUT_S)
        found = {DraftState(int(a["version"]), str(a["digest"])) for a in answers}
        if found != {state}:
            raise EngineRefusedError(f"after the swap the engine runs {found}, not {state}")
        return state

    async def set_steps(self, table: Sequence[tuple[int, int]]) -> None:
        """Replace the steps table on every rank."""
        if self._many_ranks():
            await self._tell_every_rank(steps_args(table))
            return
        await self._all("set_steps", self._command_timeout_s, table=[list(entry) for entry in table])

    async def set_capture(self, settings: CaptureSettings) -> None:
        """Replace the capture settings where there is a ring."""
        args = {
            "collect": settings.collect,
            "sample_rate": float(settings.sample_rate),
            "max_rows": settings.max_rows,
            "preferred": list(settings.preferred),
            "preferred_rate": float(settings.preferred_rate),
            "excluded": list(settings.excluded),
        }
        await self._all("set_capture", self._command_timeout_s, rings_only=True, **args)

    def _many_ranks(self) -> bool:
        return any(rank.tp_size > 1 for rank in self._ranks.values())

    async def _tell_every_rank(self, args: dict[str, int]) -> None:
        """Have all tensor-parallel ranks obey before the same batch, see ranks.py.

        A rank whose plug-in has switched these features off would go on with another number of steps than the
        others, so nothing is sent unless all can obey.

        Raises:
            EngineRefusedError: a rank cannot.
            EngineError: it did not work out on the way.
        """
        for answer in await self._all("stats", _PROBE_TIMEOUT_S):
            if not (answer["features"]["steps"] and answer["features"]["swap"]):
                raise EngineRefusedError(f"a tensor-parallel rank cannot change steps or draft: {answer['problems']}")
        await tell_every_rank(self._url, args, self._command_timeout_s, self._key)

    async def _all(
        self, command: str, timeout_s: float, *, rings_only: bool = False, **args: Any
    ) -> list[dict[str, Any]]:
        chosen = [rank for rank in self._ranks.values() if rank.ring is not None or not rings_only]
        if not chosen:
            raise EngineError(f"no engine to send {command!r} to; {self.problem or 'it is not ready yet'}")
        # Together, not one after the other: tensor-parallel ranks apply a swap only when all of them can.
        return list(await asyncio.gather(*(rank.control.call(command, timeout_s, **args) for rank in chosen)))

"""From ring rows to hidden-state chunks: rows of one request, consecutive, cut to a message's size.

A chunk is cut when it is full, when its request ends, when rows in between were dropped, when the
draft version changes, and when its oldest row has waited `max_age_s`. A request whose end never came
(its last rows were dropped, the engine died) is ended after `idle_s`, marked incomplete. Bounded: at most
`max_open` requests, each with less than one chunk of rows; beyond, the one idle longest is ended.

Rows of a request that was ended may still come, here or to a daemon that adopts the engine of a killed one. A chunk
with a number that was used before would be dropped as a repetition, by the broker and by the trainers' stores, and
nobody may remember which were used. So numbers are counted from twice the position of the first row at hand: what
came before had at most one chunk a row and one without rows, so its numbers are smaller. The plug-in writes no position
of a request twice, so positions only grow.

Rows come from shared memory that another process writes, so they are checked before use. numpy only.
"""

import itertools
from dataclasses import dataclass, field

import numpy as np

from tide_daemon.engine.ring import Rows
from tide_daemon.engine.ring_layout import ALL_FLAGS, FLAG_GAP, FLAG_GENERATED, FLAG_LAST, FLAG_MARK
from tide_daemon.errors import EngineError
from tide_daemon.wire.records import HiddenChunk, TargetSpec
from tide_daemon.wire.tensors import rows_per_chunk

_MAX_POSITION = 2**30 - 1
"""Twice that is still a chunk number."""
_COPIED = ("aux", "token_id", "next_token_id", "flags", "topk_ids", "topk_logprobs")


@dataclass(slots=True)
class _Open:
    """A request that has not ended.

    Attributes:
        parts: blocks of consecutive rows not yet in a chunk.
        next_position: that follows the last row, -1 before the first.
        touched: when its last row arrived, seconds of the caller's clock.
    """

    request_id: str
    workload: str
    touched: float
    parts: list[Rows] = field(default_factory=list)
    num_rows: int = 0
    first_position: int = 0
    next_position: int = -1
    captured_at: float = 0.0
    opened: float = 0.0
    draft_version: int = 0
    chunk_index: int = 0
    incomplete: bool = False


class Assembler:
    """Groups rows by request. Not thread-safe.

    Attributes:
        num_refused: rows that were not valid.
    """

    def __init__(
        self,
        spec: TargetSpec,
        node: str,
        codec: str,
        *,
        max_age_s: float = 5.0,
        idle_s: float = 120.0,
        max_open: int = 1024,
    ) -> None:
        self._spec = spec
        self._node = node
        self._codec = codec
        self._max_age_s = max_age_s
        self._idle_s = idle_s
        self._max_open = max_open
        self._open: dict[bytes, _Open] = {}  # the one touched last is last
        self._ready: list[HiddenChunk] = []
        self.num_refused = 0

    def add(self, rows: Rows, labels: list[str], now: float, limit_bytes: int) -> None:
        """Take rows as the ring gave them, oldest first.

        Args:
            labels: the ring's workload labels.
            now: seconds, any clock that never goes back.
            limit_bytes: largest message.

        Raises:
            EngineError: the rows cannot be from a sane writer; none of them was taken.
            ValueError: not even one row fits into `limit_bytes`.
        """
        count = len(rows["token_id"])
        if not count:
            return
        try:
            self._check(rows, len(labels))
        except EngineError:
            self.num_refused += count
            raise
        most = rows_per_chunk(limit_bytes, rows["aux"].shape[1], rows["topk_ids"].shape[1], self._codec)
        keys = np.ascontiguousarray(rows["request"]).view(np.dtype((np.void, 16))).reshape(-1)
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        bounds = np.searchsorted(inverse[order], np.arange(len(first) + 1))
        for group in np.argsort(first, kind="stable"):
            index = order[bounds[group] : bounds[group + 1]]
            self._add_request(keys[index[0]].tobytes(), rows, index, labels, now, most)

    def _check(self, rows: Rows, num_labels: int) -> None:
        flags = rows["flags"]
        plain = (flags & FLAG_MARK) == 0
        vocab = self._spec.vocab_size
        tokens, following, ids = rows["token_id"][plain], rows["next_token_id"][plain], rows["topk_ids"][plain]
        positions = rows["position"]
        sane = (
            rows["aux"].shape[1] == len(self._spec.aux_layer_ids) * self._spec.hidden_size
            and not (flags & ~np.uint16(ALL_FLAGS)).any()
            and (rows["label"] < num_labels).all()
            and ((tokens >= 0) & (tokens < vocab)).all()
            and ((following >= -1) & (following < vocab)).all()
            and ((ids >= -1) & (ids < vocab)).all()
            and ((positions >= 0) & (positions <= _MAX_POSITION)).all()
            and (rows["draft_version"] >= 0).all()
            and not np.isnan(rows["topk_logprobs"]).any()
            and np.isfinite(rows["captured_at"]).all()
        )
        if not sane:
            raise EngineError(f"{len(flags)} rows from the ring are not valid rows of this target; they were dropped")

    def _add_request(self, key: bytes, rows: Rows, index: np.ndarray, labels: list[str], now: float, most: int) -> None:
        request = self._open.pop(key, None)
        if request is None:
            while len(self._open) >= self._max_open:
                self._end(self._open.pop(next(iter(self._open))), complete=False)
            request = _Open(key.hex(), labels[int(rows["label"][index[0]])], now)
        self._open[key] = request
        request.touched = now
        flags, positions, versions = rows["flags"][index], rows["position"][index], rows["draft_version"][index]
        marks = (flags & FLAG_MARK) != 0
        breaks = (flags[1:] & (FLAG_GAP | FLAG_MARK)) != 0
        breaks |= (np.diff(positions) != 1) | (np.diff(versions) != 0) | marks[:-1]
        cuts = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(index)]
        for start, stop in itertools.pairwise(cuts):
            if flags[start] & FLAG_GAP:
                self._cut(request)
                request.incomplete = True
            if not marks[start]:
                self._append(request, rows, index[start:stop], now, most)
        if flags[-1] & FLAG_LAST:
            del self._open[key]
            self._end(request, complete=True)

    def _append(self, request: _Open, rows: Rows, index: np.ndarray, now: float, most: int) -> None:
        """Append consecutive rows of one version."""
        position, version = int(rows["position"][index[0]]), int(rows["draft_version"][index[0]])
        if request.next_position == -1:
            request.chunk_index = 2 * position
        elif request.next_position != position:
            self._cut(request)
            request.incomplete = True
        if version != request.draft_version:
            self._cut(request)
        while len(index):
            if request.num_rows == 0:
                request.first_position = position
                request.captured_at = float(rows["captured_at"][index[0]])
                request.opened = now
                request.draft_version = version
            taken, index = index[: most - request.num_rows], index[most - request.num_rows :]
            request.parts.append({name: rows[name][taken] for name in _COPIED})
            request.num_rows += len(taken)
            position += len(taken)
            request.next_position = position
            if request.num_rows >= most and len(index):
                self._cut(request)

    def flush_old(self, now: float) -> None:
        """Cut chunks whose oldest row has waited long enough; end requests that went silent."""
        for key, request in list(self._open.items()):
            if now - request.touched > self._idle_s:
                del self._open[key]
                self._end(request, complete=False)
            elif request.num_rows and now - request.opened > self._max_age_s:
                self._cut(request)

    def end_all(self) -> None:
        """End every open request, incomplete: the engine that served them is gone."""
        for request in self._open.values():
            self._end(request, complete=False)
        self._open.clear()

    def take_ready(self) -> list[HiddenChunk]:
        """Finished chunks, oldest first."""
        ready, self._ready = self._ready, []
        return ready

    def _end(self, request: _Open, *, complete: bool) -> None:
        request.incomplete |= not complete
        if request.next_position != -1:
            self._cut(request, last=True)

    def _cut(self, request: _Open, *, last: bool = False) -> None:
        if request.num_rows == 0 and not last:
            return
        if request.num_rows == 0:
            request.first_position = max(request.next_position, 0)
        joined = self._join(request.parts)
        self._ready.append(
            HiddenChunk(
                spec=self._spec,
                node=self._node,
                request_id=request.request_id,
                workload=request.workload,
                chunk_index=request.chunk_index,
                last=last,
                incomplete=request.incomplete,
                first_position=request.first_position,
                captured_at=request.captured_at,
                draft_version=request.draft_version,
                codec=self._codec,
                token_ids=joined["token_id"],
                loss_mask=((joined["flags"] & FLAG_GENERATED) != 0).astype(np.uint8),
                next_token_id=int(joined["next_token_id"][-1]) if request.num_rows else -1,
                topk_ids=joined["topk_ids"],
                topk_logprobs=joined["topk_logprobs"],
                aux=joined["aux"],
            )
        )
        request.parts = []
        request.num_rows = 0
        request.chunk_index += 1

    def _join(self, parts: list[Rows]) -> Rows:
        if not parts:
            width = len(self._spec.aux_layer_ids) * self._spec.hidden_size
            return {
                "aux": np.empty((0, width), np.uint16),
                "token_id": np.empty(0, np.int32),
                "next_token_id": np.empty(0, np.int32),
                "flags": np.empty(0, np.uint16),
                "topk_ids": np.empty((0, 0), np.int32),
                "topk_logprobs": np.empty((0, 0), np.float16),
            }
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in _COPIED}

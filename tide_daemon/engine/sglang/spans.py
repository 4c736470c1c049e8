"""Rows of one batch on their way into the ring: which rows, and what their tokens are."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from tide_daemon.engine.ring import Rows
from tide_daemon.engine.sglang.requests import Tracked
from tide_daemon.engine.sglang.staged import Staged


@dataclass(slots=True)
class Span:
    """Consecutive rows of one request in the batch: `count` rows from `source`, at `position`."""

    tracked: Tracked
    req: Any
    source: int
    position: int
    count: int
    logit_row: int  # of row 0; -1: only a prompt's last row has logits, at `last_logit_row`
    last_logit_row: int
    finished: bool  # the request was over with this batch


@dataclass(slots=True)
class Processed:
    """A batch whose result is known and whose rows are not written yet; `at` in unix seconds."""

    spans: list[Span]
    staged: Staged
    draft_version: int
    at: float


@dataclass(slots=True)
class Waiting:
    """Rows of one batch on their way into the ring: all columns but `aux`, and where their states are."""

    rows: Rows
    source: Tensor  # int64 [n], row of staged.aux
    logit_rows: list[int]  # rows of staged.logits or staged.top ...
    topk_rows: list[int]  # ... and the rows here that they belong to
    staged: Staged


def want_topk(waiting: Waiting, span: Span, at: int) -> None:
    """Note which of a span's rows have logits; `at` is its first row."""
    if span.logit_row >= 0:
        waiting.logit_rows += range(span.logit_row, span.logit_row + span.count)
        waiting.topk_rows += range(at, at + span.count)
    elif span.position + span.count >= len(span.req.origin_input_ids):
        waiting.logit_rows.append(span.last_logit_row)
        waiting.topk_rows.append(at + span.count - 1)


def visible_length(req: Any) -> int:
    """Generated tokens that the client gets: those after a stop token are accepted but not part of the text."""
    return len(req.output_ids) if req.finished_len is None else min(req.finished_len, len(req.output_ids))


def tokens_of(req: Any, start: int, stop: int) -> np.ndarray:
    """Tokens [start, stop) of prompt and output, as far as they are known."""
    prompt = len(req.origin_input_ids)
    visible = visible_length(req)
    stop = min(stop, prompt + visible)
    parts = []
    if start < prompt:
        parts.append(np.asarray(req.origin_input_ids[start : min(stop, prompt)], dtype=np.int32))
    if stop > prompt:
        parts.append(np.asarray(req.output_ids[max(start - prompt, 0) : stop - prompt], dtype=np.int32))
    return np.concatenate(parts) if parts else np.empty(0, np.int32)

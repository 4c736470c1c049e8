"""The tap: rows of accepted tokens from SGLang's batches into the ring.

Two moments for each batch:

- *stage*, right after the target's forward pass (prefill, or verification; with 0 draft steps that is
  plain decoding): take hold of the aux states and the logits. Nothing is known yet about acceptance,
  and nothing is waited for.
- *commit*, when SGLang has processed the batch's result: what each request really got is now in its
  `output_ids` (cut at a stop token, at the end of a grammar, or nothing for a request that had already
  ended), so exactly the accepted rows are copied into the ring. Token ids come from the request, never
  from a device. Where the states are not on the CPU yet (GPU only), the rows wait in a short queue.

Row j of a verify block was fed the request's token P + n - 1 + j (P prompt tokens, n generated before
the step) and predicts the next one; of the a tokens that the step added, rows 0..a-1 are the accepted
ones (srt/speculative/eagle_worker_common.py, run_eagle_verify; chains only, topk 1).

Commits of single steps would run with cold caches behind each forward pass: 2.0 ms with 8 requests where a warm loop
takes 0.9 (measured; see ops/decisions/0006). So steps of plain decoding are kept, _MERGED of them at most, until a
request ends, a step drafts or a prefill comes; their top-k is computed at once, while the logits are in the cache.

Letters: n rows, b requests in the batch, w rows of a verify block, A*H aux width, V vocabulary.
"""

import time
from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tide_daemon.engine.port import CaptureSettings
from tide_daemon.engine.ring import RingWriter
from tide_daemon.engine.ring_layout import FLAG_GAP, FLAG_GENERATED, FLAG_LAST, FLAG_MARK, FLAG_TOPK, MAX_LABELS
from tide_daemon.engine.sglang.prefixes import PromptPrefixes
from tide_daemon.engine.sglang.requests import ATTRIBUTE, OPTED_OUT, Tracked, admit
from tide_daemon.engine.sglang.spans import Processed, Span, Waiting, tokens_of, visible_length, want_topk
from tide_daemon.engine.sglang.staged import Staged
from tide_daemon.engine.sglang.topk import TopLogprobs

_MERGED = 8
_MAX_WAITING = 8
"""Batches whose copies may be under way. A GPU that is that far behind costs rows, not time."""


class Tap:
    """Owns the ring's writing end. Used by the step loop's thread only, but for `settings`.

    Attributes:
        settings: replaced as a whole by the control thread.
        draft_version: written beside each row.
        num_opted_out: requests whose client said so.
        served: [drafted chains, their tokens] of captured requests by workload.
    """

    def __init__(
        self, ring: RingWriter, settings: CaptureSettings, vocab_size: int, prefixes: PromptPrefixes | None = None
    ) -> None:
        self.ring = ring
        self.settings = settings
        self.served: dict[str, list[int]] = {}
        self._prefixes = prefixes
        self.draft_version = 0
        self.num_opted_out = 0
        self._kept: list[Processed] = []
        self._waiting: deque[Waiting] = deque()
        self._waiting_rows = 0
        layout = ring.layout
        self._aux = torch.from_numpy(ring.columns["aux"].view(np.int16)).view(torch.bfloat16)  # [N, A*H], the ring
        self._top = TopLogprobs(vocab_size, layout.topk) if layout.topk else None

    def tracked(self, req: Any) -> Tracked | None:
        """The record of a request that is captured, None for one that is not."""
        state = req.__dict__.get(ATTRIBUTE)
        if state is None and self.settings.collect:
            state = admit(req, self.settings, self._prefixes)
            setattr(req, ATTRIBUTE, state)
            if state == OPTED_OUT:
                self.num_opted_out += 1
        return state if isinstance(state, Tracked) and not state.ended else None

    def wants(self, reqs: list[Any]) -> bool:
        """Whether a batch holds a request that is captured. All of them are decided on, in the batch's order."""
        tracked = [self.tracked(req) for req in reqs]
        return any(one is not None for one in tracked)

    def stage(self, reqs: list[Any], staged: Staged) -> Staged:
        """A verification with its top-k instead of its logits, where every row will be written.

        Those are batches with one row a request, of captured requests alone.
        """
        if self._top is None or staged.logits is None or staged.width != 1:
            return staged
        tracked = [self.tracked(req) for req in reqs]
        if not all(one is not None and one.plain_logits for one in tracked):
            return staged
        return replace(staged, logits=None, top=self._top(staged.logits, torch.arange(len(reqs))))

    def commit_verify(self, reqs: list[Any], staged: Staged, lengths_before: list[int]) -> None:
        """Write the accepted rows of a verification, or keep them to be written with those of the next ones.

        Args:
            lengths_before: generated tokens of each request before the result was processed.
        """
        spans: list[Span] = []
        for index, (req, before) in enumerate(zip(reqs, lengths_before, strict=True)):
            tracked = self.tracked(req)
            if tracked is None:
                continue
            added = visible_length(req) - before
            if staged.width > 1 and added > 0:
                self._count(tracked.workload, added)
            source, position = index * staged.width, len(req.origin_input_ids) + before - 1
            spans.append(Span(tracked, req, source, position, added, source, -1, req.finished()))
        self._kept.append(Processed(spans, staged, self.draft_version, time.time()))
        # Without logits, and on the CPU already, it is small enough to be kept for a while.
        light = staged.width == 1 and staged.logits is None and staged.is_ready()
        if not light or len(self._kept) >= _MERGED or any(span.finished for span in spans):
            self.flush()

    def commit_prefill(self, reqs: list[Any], staged: Staged) -> None:
        """Write the rows of a prefill, or of one chunk of it."""
        spans: list[Span] = []
        source = 0
        for index, req in enumerate(reqs):
            extend = staged.extend_lens[index]
            tracked = self.tracked(req)
            if tracked is not None:
                spans.append(Span(tracked, req, source, staged.prefix_lens[index], extend, -1, index, req.finished()))
            source += extend
        self._kept.append(Processed(spans, staged, self.draft_version, time.time()))
        self.flush()

    def flush(self) -> None:
        """Write everything that is on the CPU by now into the ring, in order."""
        kept, self._kept = self._kept, []
        for batch in kept:
            wanted: list[Span] = []
            for span in batch.spans:
                if not span.tracked.ended:
                    self._add(wanted, span)
            self._write(wanted, batch)
        self._write_waiting()

    def _count(self, workload: str, num_tokens: int) -> None:
        """One drafted chain of a workload; beyond as many as the ring can name all count as unlabelled."""
        name = workload if workload in self.served or len(self.served) < MAX_LABELS else ""
        served = self.served.setdefault(name, [0, 0])
        served[0] += 1
        served[1] += num_tokens

    def _add(self, spans: list[Span], span: Span) -> None:
        """Cut a span to what is new, wanted and fits; end markers for requests that end without a row."""
        tracked = span.tracked
        if not self.settings.collect:
            self._end(tracked)
            return
        if tracked.num_rows and span.count > 0 and span.position > tracked.next_position:
            self._lose(tracked, span.position - tracked.next_position)  # a batch in between was not staged
        again = min(max(tracked.next_position - span.position, 0), max(span.count, 0))
        span.source += again
        span.position += again
        span.count -= again
        if span.logit_row >= 0:
            span.logit_row += again
        limit = self.settings.max_rows
        if limit:
            span.count = min(span.count, limit - tracked.num_rows)
        if span.count > 0:
            spans.append(span)
        elif span.finished:
            self._end(tracked)

    def _lose(self, tracked: Tracked, num_rows: int) -> None:
        self.ring.count_dropped(num_rows, 0 if tracked.gap else 1)
        tracked.gap = True

    def _write(self, spans: list[Span], batch: Processed) -> None:
        free = self.ring.free_slots() - self._waiting_rows if len(self._waiting) < _MAX_WAITING else 0
        written: list[Span] = []
        for span in spans:
            fits = max(0, min(span.count, free))
            free -= fits
            span.tracked.next_position = span.position + span.count
            if fits:
                dropped = span.count - fits
                if dropped:
                    self.ring.count_dropped(dropped, 1)  # its next row will carry the gap
                span.count = fits
                written.append(span)
                self._finish_span(span, dropped)
            else:
                self._lose(span.tracked, span.count)
        if written:
            self._waiting.append(self._described(written, batch))
            self._waiting_rows += sum(span.count for span in written)
        else:
            batch.staged.release()
        self._write_waiting()

    def _finish_span(self, span: Span, dropped: int) -> None:
        tracked = span.tracked
        tracked.num_rows += span.count
        limit = self.settings.max_rows
        tracked.ended = span.finished or bool(limit and tracked.num_rows >= limit)
        if dropped:
            tracked.ended = False  # an end without its rows is for a marker, when there is room

    def _described(self, spans: list[Span], batch: Processed) -> Waiting:
        """The rows of `spans` without their states."""
        columns, staged = self.ring.columns, batch.staged
        total = sum(span.count for span in spans)
        source = torch.tensor([row for span in spans for row in range(span.source, span.source + span.count)])
        small = [name for name in columns if name != "aux"]
        rows = {name: np.empty((total, *columns[name].shape[1:]), columns[name].dtype) for name in small}
        rows["captured_at"].fill(batch.at)
        rows["draft_version"].fill(batch.draft_version)
        rows["topk_ids"].fill(-1)
        rows["topk_logprobs"].fill(0)
        waiting = Waiting(rows, source, [], [], staged)
        at = 0
        for span in spans:
            part = slice(at, at + span.count)
            self._describe(span, {name: column[part] for name, column in rows.items()})
            if span.tracked.plain_logits and (staged.logits is not None or staged.top is not None):
                want_topk(waiting, span, at)
            at += span.count
        return waiting

    def _write_waiting(self) -> None:
        while self._waiting and self._waiting[0].staged.is_ready():
            waiting = self._waiting.popleft()
            count = len(waiting.source)
            self._waiting_rows -= count
            self._fill_topk(waiting)
            done = 0
            for slots in self.ring.reserve(count):
                part = slice(done, done + slots.stop - slots.start)
                self._aux[slots].copy_(waiting.staged.aux.index_select(0, waiting.source[part]))
                for name, values in waiting.rows.items():
                    self.ring.columns[name][slots] = values[part]
                done = part.stop
            self.ring.commit(count)
            waiting.staged.release()

    def _describe(self, span: Span, rows: dict[str, np.ndarray]) -> None:
        """Fill the small columns of one span."""
        tracked, req, start, count = span.tracked, span.req, span.position, span.count
        prompt = len(req.origin_input_ids)
        known = tokens_of(req, start, start + count + 1)
        rows["token_id"][:] = known[:count]
        rows["next_token_id"].fill(-1)
        rows["next_token_id"][: len(known) - 1] = known[1 : count + 1]
        positions = np.arange(start, start + count)
        rows["position"][:] = positions
        flags = np.where(positions >= prompt, FLAG_GENERATED, 0)
        if tracked.gap:
            flags[0] |= FLAG_GAP
            tracked.gap = False
        if tracked.ended:
            flags[-1] |= FLAG_LAST
        tracked.gap |= tracked.next_position > start + count
        rows["flags"][:] = flags
        rows["label"].fill(self.ring.label(tracked.workload))
        rows["request"][:] = tracked.key

    def _fill_topk(self, waiting: Waiting) -> None:
        targets, wanted, staged = waiting.topk_rows, torch.tensor(waiting.logit_rows, dtype=torch.int64), waiting.staged
        if self._top is None or not targets:
            return
        if staged.top is not None:
            ids, logprobs = (column.index_select(0, wanted) for column in staged.top)
        else:
            assert staged.logits is not None
            ids, logprobs = self._top(staged.logits, wanted)
        waiting.rows["topk_ids"][targets] = ids.numpy()
        waiting.rows["topk_logprobs"][targets] = logprobs.numpy()
        waiting.rows["flags"][targets] |= FLAG_TOPK

    def _end(self, tracked: Tracked) -> None:
        """End a request with a marker slot; without room the reader ends it by age."""
        tracked.ended = True
        if tracked.num_rows == 0 or self._waiting or self.ring.free_slots() == 0:
            return
        columns = self.ring.columns
        (slots, *_) = self.ring.reserve(1)
        for name, column in columns.items():
            if name != "aux":
                column[slots] = 0
        columns["flags"][slots] = FLAG_MARK | FLAG_LAST | (FLAG_GAP if tracked.gap else 0)
        columns["request"][slots] = tracked.key
        columns["captured_at"][slots] = time.time()
        self.ring.commit(1)

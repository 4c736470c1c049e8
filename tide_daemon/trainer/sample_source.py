"""Samples for training and scoring, read from a store by another process. Bounded memory, no torch."""

from collections import Counter, OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tide_daemon.trainer.index import StoredRequest, StoreReader
from tide_daemon.trainer.join import decode_chunks, join, pieces, same_topk
from tide_daemon.trainer.sample import Sample
from tide_daemon.trainer.selection import Item
from tide_daemon.trainer.settings import TrainerSettings
from tide_daemon.wire.records import TargetSpec

_CACHE_BYTES = 16 << 20
_SCORE_ROWS = 4096
_SCORE_CONTEXT_ROWS = 2048


class SampleSource:
    """Requests of a store as samples of one target.

    Attributes:
        refused: chunks that could not be used, by reason; see join.py.
    """

    def __init__(self, folder: Path, settings: TrainerSettings) -> None:
        self._reader = StoreReader(folder)
        self._settings = settings
        self._cache: OrderedDict[str, tuple[int, list[Sample]]] = OrderedDict()
        self._cache_bytes = 0
        self.refused: Counter[str] = Counter()

    def refresh(self) -> dict[str, StoredRequest]:
        """The requests that the store holds now."""
        self._reader.refresh()
        return self._reader.index.requests

    def batch(self, items: Sequence[Item], spec: TargetSpec) -> list[Sample]:
        """The pieces of a training step; those that retention has taken since are left out."""
        found = []
        for request_id, index in items:
            cut = self._pieces(request_id, spec)
            if index < len(cut):
                found.append(cut[index])
        return same_topk(found)

    def scored(
        self, spec: TargetSpec, requests: Sequence[StoredRequest], max_requests: int, max_positions: int
    ) -> list[Sample]:
        """Samples to score on: the first of `requests`, up to about `max_positions` generated tokens."""
        found: list[Sample] = []
        num_requests = num_positions = 0
        for request in requests:
            if num_requests >= max_requests or num_positions >= max_positions:
                break
            samples = pieces(self._join(request, spec), _SCORE_ROWS, _SCORE_CONTEXT_ROWS)
            found += samples
            num_requests += bool(samples)
            num_positions += sum(sample.num_response_tokens for sample in samples)
        return same_topk(found)

    def rows(self, spec: TargetSpec, requests: Sequence[StoredRequest], num_rows: int) -> list[Sample]:
        """Whole samples of the newest of the requests, at least `num_rows` rows if there are as many."""
        found: list[Sample] = []
        for request in reversed(requests):
            if sum(sample.num_rows for sample in found) >= num_rows:
                break
            found += self._join(request, spec)
        return same_topk(found)

    def token_counts(self, spec: TargetSpec, requests: Sequence[StoredRequest]) -> NDArray[np.float64]:
        """How often the target said each token, float64 [V]: its words, and what it thought likely.

        A generated token counts 1; a captured candidate counts its probability, from prompt rows too; a prompt
        token counts a tenth. With little traffic the candidates and the prompts order the rest of the vocabulary.
        """
        counts = np.zeros(spec.vocab_size)
        for request in requests:
            for sample in self._join(request, spec):
                said = sample.loss_mask != 0
                np.add.at(counts, sample.token_ids[said], 1.0)
                np.add.at(counts, sample.token_ids[~said], 0.1)
                known = sample.topk_ids >= 0
                np.add.at(counts, sample.topk_ids[known], np.exp(sample.topk_logprobs[known].astype(np.float64)))
        return counts

    def _pieces(self, request_id: str, spec: TargetSpec) -> list[Sample]:
        request = self._held(request_id)
        if request is None:
            return []
        if request_id in self._cache:
            self._cache.move_to_end(request_id)
            return self._cache[request_id][1]
        settings = self._settings
        joined = self._join(request, spec)
        cut = pieces(joined, settings.sequence_tokens, settings.context_tokens)
        # Pieces are views: what they keep alive is the whole request.
        num_bytes = sum(sample.aux.nbytes for sample in joined)
        self._cache[request_id] = (num_bytes, cut)
        self._cache_bytes += num_bytes
        while self._cache_bytes > _CACHE_BYTES:
            _, (dropped, _) = self._cache.popitem(last=False)
            self._cache_bytes -= dropped
        return cut

    def _held(self, request_id: str) -> StoredRequest | None:
        """The request, if the store holds it still.

        When a request is deleted, the segments that hold it are written anew under other names. A look at the files
        then finds where the others are now, and what is deleted is not learnt from any more, cached or not.
        """
        request = self._reader.index.requests.get(request_id)
        if request is not None and not all(entry.path.exists() for entry in request.chunks.values()):
            held = self.refresh()
            for gone in [cached for cached in self._cache if cached not in held]:
                self._cache_bytes -= self._cache.pop(gone)[0]
            request = held.get(request_id)
        return request

    def _join(self, request: StoredRequest, spec: TargetSpec) -> list[Sample]:
        return join(decode_chunks(self._reader.bodies(request), spec, self.refused), self.refused)

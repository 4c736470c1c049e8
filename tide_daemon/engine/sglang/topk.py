"""The target's most likely next tokens from its logits.

Letters: m rows, V vocabulary, k kept, B blocks.
"""

import torch
from torch import Tensor

_ROWS = 8
_BLOCK = 128


class TopLogprobs:
    """Computes top log-probabilities on a CPU at about twice the cost of reading the logits.

    Scratch buffers for life: at some hundred KiB a row, fresh memory costs more (page faults) than
    the arithmetic. And a topk over a large vocabulary costs several times a maximum: the k largest values
    lie in the k blocks with the largest maxima, so only those are sorted.
    """

    def __init__(self, vocab_size: int, k: int) -> None:
        self.k = k
        num_blocks = -(-vocab_size // _BLOCK)
        self._vocab_size = vocab_size
        self._scratch = torch.empty(_ROWS, num_blocks * _BLOCK)
        self._row = torch.empty(num_blocks * _BLOCK)
        self._kept_blocks = min(k, num_blocks)
        self._in_block = torch.arange(_BLOCK)

    def __call__(self, logits: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The k largest log-probabilities of some rows, largest first.

        Args:
            logits: [*, V] on the CPU, any float type, not changed.
            rows: int64 [m], which rows.

        Returns:
            ids int32 [m, k] and natural log-probabilities float16 [m, k]; the softmax over all V runs in
            float32. Among equal values the order is not defined.
        """
        count = len(rows)
        ids = torch.empty(count, self.k, dtype=torch.int32)
        logprobs = torch.empty(count, self.k, dtype=torch.float16)
        for start in range(0, count, _ROWS):
            values = self._values(logits, rows[start : start + _ROWS].tolist())
            part = slice(start, start + len(values))
            ids[part], logprobs[part] = self._top(values)
        return ids, logprobs

    def _values(self, logits: Tensor, rows: list[int]) -> Tensor:
        """float32 [m, V, filled up to whole blocks]: the logits themselves where they are that already, else copies."""
        count, first = len(rows), rows[0]
        as_they_are = logits.dtype == torch.float32 and logits.is_contiguous() and logits.shape[1] % _BLOCK == 0
        if as_they_are and rows == list(range(first, first + count)):
            return logits[first : first + count]
        for at, row in enumerate(rows):
            self._scratch[at, : self._vocab_size].copy_(logits[row])
        self._scratch[:count, self._vocab_size :] = -torch.inf
        return self._scratch[:count]

    def _top(self, values: Tensor) -> tuple[Tensor, Tensor]:
        blocks = values.view(len(values), -1, _BLOCK)
        best = blocks.amax(-1).topk(self._kept_blocks, dim=-1).indices[:, :, None]  # [m, k, 1]
        candidates = blocks.gather(1, best.expand(-1, -1, _BLOCK)).flatten(1)  # [m, k * 128]
        top, at = candidates.topk(self.k, dim=-1)
        ids = (best * _BLOCK + self._in_block).flatten(1).gather(1, at)
        # Row by row, so that what the three passes write and read stays in the nearest caches.
        sums = [torch.sub(row, most, out=self._row).exp_().sum() for row, most in zip(values, top[:, 0], strict=True)]
        return ids, top - top[:, :1] - torch.stack(sums).log()[:, None]

"""The target's most likely next tokens from its logits.

Letters: m rows, V vocabulary, k kept, B blocks.
"""

import torch
from torch import Tensor

_ROWS = 8
_BLOCK = 128


class TopLogprobs:
    """Computes top log-probabilities on a CPU at about twice the cost of reading the logits.

    One scratch buffer for life: at some hundred KiB a row, fresh memory costs more (page faults) than
    the arithmetic. And a topk over a large vocabulary costs several times a maximum: the k largest values
    lie in the k blocks with the largest maxima, so only those are sorted.
    """

    def __init__(self, vocab_size: int, k: int) -> None:
        self.k = k
        num_blocks = -(-vocab_size // _BLOCK)
        self._vocab_size = vocab_size
        self._scratch = torch.full((_ROWS, num_blocks * _BLOCK), -torch.inf)
        self._blocks = self._scratch.view(_ROWS, num_blocks, _BLOCK)
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
            block = rows[start : start + _ROWS].tolist()
            for at, row in enumerate(block):
                self._scratch[at, : self._vocab_size].copy_(logits[row])
            stop = start + len(block)
            ids[start:stop], logprobs[start:stop] = self._block(len(block))
        return ids, logprobs

    def _block(self, count: int) -> tuple[Tensor, Tensor]:
        blocks = self._blocks[:count]
        best = blocks.amax(-1).topk(self._kept_blocks, dim=-1).indices[:, :, None]  # [m, k, 1]
        candidates = blocks.gather(1, best.expand(-1, -1, _BLOCK)).flatten(1)  # [m, k * 128]
        top, at = candidates.topk(self.k, dim=-1)
        ids = (best * _BLOCK + self._in_block).flatten(1).gather(1, at)
        largest = top[:, :1]
        total = self._scratch[:count].sub_(largest).exp_().sum(-1, keepdim=True)
        # The padding became exp(-inf) = 0; make it smallest again for the next maximum.
        self._scratch[:count, self._vocab_size :] = -torch.inf
        return ids, top - largest - total.log()

"""What the draft should have said: a distribution over the draft's vocabulary for each row and step.

The captured top-k, restricted to the draft's vocabulary and renormalised, where it was captured; the token itself
elsewhere (prompts, k = 0). The target's whole distribution, rebuilt from its last layer, was tried and is not
better than a top 16: see ops/decisions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tide_daemon.trainer.batch import Batch


@dataclass(frozen=True, eq=False)
class Targets:
    """Where targets come from. Letters: Vd draft vocabulary, V target vocabulary.

    Attributes:
        draft_ids: int64 [V], the draft row of each target token, -1 where it has none.
        num_draft_ids: Vd.
    """

    draft_ids: Tensor
    num_draft_ids: int

    def distribution(self, batch: Batch, rows: Tensor, step: int | Tensor) -> tuple[Tensor, Tensor]:
        """Targets of the drafts made at `rows` in `step`.

        Args:
            rows: int64 [C].
            step: of the unroll, for all rows or, int64 [C], for each.

        Returns:
            q: float32 [C, Vd], each row sums to 1 or is all zero.
            usable: bool [C], False where neither the label is in the draft's vocabulary nor a
                distribution is known; those q are zero.
        """
        labels = batch.tokens[rows, step + 1]
        known = labels >= 0
        label_rows = torch.where(known, self.draft_ids[labels.clamp(min=0)], -1)
        follows = batch.next_rows[rows] >= step + 1
        source = torch.where(follows, rows + step + 1, rows)
        q, soft = self._from_topk(batch, source, follows)
        hard = known & ~soft & (label_rows >= 0)
        q[hard.nonzero().flatten(), label_rows[hard]] = 1.0
        return q, known & (soft | hard)

    def _from_topk(self, batch: Batch, source: Tensor, follows: Tensor) -> tuple[Tensor, Tensor]:
        ids = batch.topk_ids[source]
        columns = torch.where(ids >= 0, self.draft_ids[ids.clamp(min=0)], -1)
        inside = (columns >= 0) & follows.unsqueeze(-1)
        probs = batch.topk_logprobs[source].exp() * inside
        mass = probs.sum(-1, keepdim=True)
        soft = mass > 1e-3
        q = probs.new_zeros(source.numel(), self.num_draft_ids)
        q.scatter_add_(1, columns.clamp(min=0), probs / mass.clamp(min=1e-6) * soft)
        return q, soft[:, 0]

"""The draft's vocabulary: which target tokens its LM head can name, and in which row.

The size is fixed when an engine starts; the map is data and can be replaced like a weight. A rebuilt
map keeps every token that stays in its old row, so that weights and optimizer state stay valid and a
delta between two versions stays small.

d2t holds OFFSETS: target id = draft id + d2t[draft id] (SGLang and vLLM add arange themselves).
t2d is a boolean mask over the target's vocabulary. Rows need not be in ascending order of target id.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from tide_daemon.errors import DraftError


@dataclass(frozen=True, eq=False)
class VocabMap:
    """A validated map. Letters: Vd draft vocabulary, V target vocabulary.

    Attributes:
        d2t: int64 [Vd], offsets.
        t2d: bool [V], True where the draft can name the token.
    """

    d2t: Tensor
    t2d: Tensor

    def __post_init__(self) -> None:
        if self.d2t.dtype != torch.int64 or self.d2t.ndim != 1 or self.t2d.dtype != torch.bool or self.t2d.ndim != 1:
            raise DraftError("vocabulary map: d2t must be int64 [Vd] and t2d bool [V]")
        # int64 overflow wraps, so bound the offsets before adding.
        limit = self.t2d.numel()
        if self.d2t.numel() and int(self.d2t.abs().max()) not in range(limit + 1):
            raise DraftError("vocabulary map: an offset in d2t is larger than the vocabulary")
        ids = self.target_ids
        if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= limit):
            raise DraftError("vocabulary map: d2t points outside the target's vocabulary")
        mask = torch.zeros(limit, dtype=torch.bool)
        mask[ids] = True
        if int(mask.sum()) != ids.numel():
            raise DraftError("vocabulary map: two rows of d2t name the same token")
        if not torch.equal(mask, self.t2d):
            raise DraftError("vocabulary map: t2d does not mark exactly the tokens that d2t names")

    @property
    def size(self) -> int:
        """Vd."""
        return self.d2t.numel()

    @property
    def target_ids(self) -> Tensor:
        """int64 [Vd], the target token of each draft row (SGLang's hot_token_id)."""
        return self.d2t + torch.arange(self.d2t.numel())

    def draft_ids(self) -> Tensor:
        """int64 [V], the draft row of each target token, -1 where it has none."""
        rows = torch.full((self.t2d.numel(),), -1, dtype=torch.int64)
        rows[self.target_ids] = torch.arange(self.size)
        return rows

    def digest(self) -> str:
        """sha256 hex of d2t's bytes, little-endian: the manifest's vocab_map_digest."""
        return hashlib.sha256(self.d2t.contiguous().numpy().astype("<i8").tobytes()).hexdigest()


def map_from_ids(target_ids: Tensor, vocab_size: int) -> VocabMap:
    """The map whose row i names target_ids[i] (int64 [Vd]).

    Raises:
        DraftError: an id is out of range or appears twice.
    """
    ids = target_ids.to(torch.int64)
    t2d = torch.zeros(vocab_size, dtype=torch.bool)
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= vocab_size):
        raise DraftError("vocabulary map: a token id is outside the target's vocabulary")
    t2d[ids] = True
    return VocabMap(d2t=ids - torch.arange(ids.numel()), t2d=t2d)


def build_vocab_map(
    counts: Tensor, size: int, *, previous: VocabMap | None = None, always: tuple[int, ...] = ()
) -> VocabMap:
    """The `size` most frequent tokens, those of `previous` in their old rows.

    Args:
        counts: int64 or float [V], how often each token was seen in the target's output (prompts may be
            added with a smaller weight). Ties go to the token of `previous`, then to the lower id.
        size: Vd; all V tokens may be asked for.
        previous: the map in force; must have the same sizes.
        always: tokens that are taken whatever their count, such as the end-of-sequence token.

    Raises:
        DraftError: sizes do not fit.
    """
    vocab_size = counts.numel()
    if not 1 <= size <= vocab_size or len(set(always)) > size or any(not 0 <= i < vocab_size for i in always):
        raise DraftError(f"cannot choose {size} of {vocab_size} tokens")
    if previous is not None and (previous.size != size or previous.t2d.numel() != vocab_size):
        raise DraftError(f"the previous map has {previous.size} rows, {size} are asked for: the size is fixed")
    weight = counts.to(torch.float64).clone()
    if previous is not None:
        # Half a count: decides ties only, for counts are whole numbers (or weights well above it).
        weight[previous.target_ids] += 0.5
    weight[list(always)] = float("inf")
    chosen = torch.sort(weight, descending=True, stable=True).indices[:size]
    if previous is None:
        return map_from_ids(torch.sort(chosen).values, vocab_size)
    keep = torch.zeros(vocab_size, dtype=torch.bool)
    keep[chosen] = True
    ids = previous.target_ids.clone()
    leaving = ~keep[ids]
    entering = keep.clone()
    entering[ids] = False
    ids[leaving] = torch.nonzero(entering).flatten()
    return map_from_ids(ids, vocab_size)


def moved_rows(previous: VocabMap, new: VocabMap) -> Tensor:
    """bool [Vd], True for rows that name another token than before: their weights start afresh."""
    return previous.d2t != new.d2t

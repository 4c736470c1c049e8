"""The draft run as it runs in serving, over all rows at once: the train-time test of EAGLE-3.

Step 0 is an ordinary causal pass over a sequence: row r reads fc(aux) of its position and the
embedding of the next token. Step j >= 1 continues the chain that STARTS at row r: it reads the
draft's own hidden state of step j-1 at r and the embedding of the token one further on, at position
p + j, and attends to

    keys of step 0 at rows 0 .. r      (in serving: the draft's KV cache, from true target states)
    keys of steps 1 .. j at row r      (the chain's own; "diagonal")

which is what SGLang's chain does for every possible start. Tokens are the true ones; up to the first
wrong draft they are the chain's own too, so the accept length counted on this is exact.

Both training and scoring call `unroll`; there is no second implementation. Shape letters: R rows in
packed sequences, C chain rows (a subset), H hidden, N heads, M key-value heads, D head size.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tide_daemon.draft.model import Eagle3Draft, rotary_tables
from tide_daemon.trainer.batch import Batch


@dataclass(frozen=True, eq=False)
class UnrollStep:
    """Hidden states after one step.

    Attributes:
        rows: int64 [C], rows of the batch that these states belong to.
        hidden: [C, H], before the final norm.
    """

    rows: Tensor
    hidden: Tensor


def unroll(
    draft: Eagle3Draft, embed_tokens: Tensor, batch: Batch, num_steps: int, chain_rows: Tensor | None = None
) -> Iterator[UnrollStep]:
    """Yield the states of steps 0 .. num_steps - 1.

    Args:
        draft: in the dtype to compute in.
        embed_tokens: [V, H], the target's, in the same dtype.
        batch: packed for at least `num_steps`.
        chain_rows: int64 [C] ascending, rows whose chains go on after step 0; None for all. Step 0 always
            yields all R rows, for every row is somebody's key.

    Rows whose input token is unknown get token 0; the caller must not look at them. They are last in
    their sequence, so no other row sees their keys.
    """
    attention = draft.midlayer.self_attn
    tokens = batch.tokens.clamp(min=0)
    hidden = draft.fc(batch.aux.to(draft.fc.weight.dtype))
    x = draft.midlayer.attention_input(hidden, embed_tokens[tokens[:, 0]])
    cos, sin = rotary_tables(batch.positions, draft.config)
    q, k0, v0 = (part[0] for part in attention.qkv(x[None], cos, sin))
    hidden = draft.midlayer.after_attention(hidden, _causal(q, k0, v0, batch.lengths))
    all_rows = torch.arange(batch.num_rows, device=batch.positions.device)
    yield UnrollStep(all_rows, hidden)
    rows = all_rows if chain_rows is None else chain_rows
    if num_steps == 1 or not rows.numel():
        return
    hidden = hidden if chain_rows is None else hidden[rows]
    positions, tokens = batch.positions[rows], tokens[rows]
    chains = _ChainIndex.build(rows, batch.lengths)
    diagonal: list[tuple[Tensor, Tensor]] = []
    for step in range(1, num_steps):
        x = draft.midlayer.attention_input(hidden, embed_tokens[tokens[:, step]])
        cos, sin = rotary_tables(positions + step, draft.config)
        q, k, v = (part[0] for part in attention.qkv(x[None], cos, sin))
        diagonal.append((k, v))
        hidden = draft.midlayer.after_attention(hidden, _chain(q, k0, v0, diagonal, chains))
        yield UnrollStep(rows, hidden)


def _causal(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Causal attention within each sequence. [R, N, D], [R, M, D] -> [R, N*D].

    In float32 on a CPU: forward and backward of 156 rows take 2.8 ms, 5.7 in bf16 (our measurement, AMX); of 512
    rows about the same.
    """
    dtype = q.dtype
    if q.device.type == "cpu":
        q, k, v = q.float(), k.float(), v.float()
    outs = []
    for qs, ks, vs in zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True):
        out = functional.scaled_dot_product_attention(
            qs.transpose(0, 1)[None],
            ks.transpose(0, 1)[None],
            vs.transpose(0, 1)[None],
            is_causal=True,
            enable_gqa=True,
        )
        outs.append(out[0].transpose(0, 1).flatten(1))
    return torch.cat(outs).to(dtype)


@dataclass(frozen=True, eq=False)
class _ChainIndex:
    """Where each sequence's chain rows lie.

    Attributes:
        counts: chain rows of each sequence.
        spans: (first row, last needed row + 1) of each sequence's keys.
        masks: per sequence, bool [c, keys], True where the key is NOT visible.
    """

    counts: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    masks: tuple[Tensor, ...]

    @staticmethod
    def build(rows: Tensor, lengths: tuple[int, ...]) -> "_ChainIndex":
        counts, spans, masks = [], [], []
        start = 0
        device, rows = rows.device, rows.cpu()  # sizes are needed here: once, not at every sequence
        for length in lengths:
            local = rows[(rows >= start) & (rows < start + length)] - start
            last = int(local[-1]) + 1 if local.numel() else 0
            counts.append(local.numel())
            spans.append((start, start + last))
            masks.append((torch.arange(last)[None, :] > local[:, None]).to(device))
            start += length
        return _ChainIndex(tuple(counts), tuple(spans), tuple(masks))


def _chain(q: Tensor, k0: Tensor, v0: Tensor, diagonal: list[tuple[Tensor, Tensor]], chains: _ChainIndex) -> Tensor:
    """Attention of chain rows to the keys of step 0 up to their row and to their own later keys.

    Args:
        q: [C, N, D].
        k0, v0: [R, M, D].
        diagonal: for steps 1 .. j, k and v [C, M, D].

    Returns:
        [C, N*D]. Softmax in float32.
    """
    num_chains, heads, dim = q.shape
    kv = k0.shape[1]
    group = heads // kv
    q = q.view(num_chains, kv, group, dim) * dim**-0.5
    own_scores = torch.stack([(q * k.unsqueeze(2)).sum(-1) for k, _ in diagonal], dim=-1)  # [C, M, G, j]
    own_values = torch.stack([v for _, v in diagonal], dim=2)  # [C, M, j, D]
    outs = []
    offset = 0
    for count, (first, last), mask in zip(chains.counts, chains.spans, chains.masks, strict=True):
        if not count:
            continue
        part = slice(offset, offset + count)
        offset += count
        queries = q[part].permute(1, 2, 0, 3).reshape(kv, group * count, dim)
        keys = k0[first:last].permute(1, 2, 0)
        scores = torch.matmul(queries, keys).view(kv, group, count, last - first)
        scores = scores.float().masked_fill(mask, float("-inf"))
        own = own_scores[part].permute(1, 2, 0, 3).float()
        weights = torch.cat([scores, own], dim=-1).softmax(-1).to(q.dtype)
        shared, mine = weights.split([last - first, own.shape[-1]], dim=-1)
        values = v0[first:last].transpose(0, 1)
        out = torch.matmul(shared.reshape(kv, group * count, last - first), values).view(kv, group, count, dim)
        mine_out = torch.einsum("mgcj,cmjd->mgcd", mine, own_values[part])
        outs.append((out + mine_out).permute(2, 0, 1, 3).reshape(count, heads * dim))
    return torch.cat(outs)

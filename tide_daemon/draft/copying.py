"""Attention heads that copy: "this token was seen before, and what came after it then was ...".

A draft that starts with such heads can repeat what stands in the prompt or earlier in the answer before
it has learnt a word, and training only has to refine it; left to itself, training finds such heads late
(ops/decisions has the numbers). One layer suffices, because an EAGLE-3 row holds two tokens: at row r
the states of the token at r (in fc's output) and the embedding of the token at r+1. So

    query at p    code of the token at p+1      from the embedding's half of the input
    key at r      code of the token at r        from the hidden half: fc puts it there
    value at r    the token at r+1              from the embedding's half
    output        raises the head's logit of the value's token

A code is the token's normed embedding, projected on the main directions of the tokens seen and whitened.
fc gets the code of a row's own token by ridge regression from the captured states; a few thousand rows
do. It writes the code into the directions that matter least to the LM head, so that it does not speak.
The slow pairs of the rotary embedding carry the codes: they hardly turn within some hundred tokens.

Letters: n rows, H hidden, D head size, C code size, V target vocabulary, Vd draft vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tide_daemon.draft.config import DraftConfig
from tide_daemon.draft.model import Eagle3Draft

CODE_SIZE = 128
MATCH_SHARPNESS = 25.0
"""Attention logit of a match over no match, about."""
COPY_STRENGTH = 20.0
"""How far a copied token's logit is raised over the residual's spread: large, for the match is averaged over many."""
MAX_TURN = 0.015
"""Radians a token that a rotary pair may turn to carry codes, about: matches further apart than 1/MAX_TURN blur."""
RIDGE = 0.02
MIN_SPREAD = 0.05


@dataclass(frozen=True, eq=False)
class CapturedRows:
    """Rows of real traffic to fit fc on: aux [n, A*H] in any float dtype, token_ids int64 [n], the token fed there."""

    aux: Tensor
    token_ids: Tensor


def add_copy_heads(
    draft: Eagle3Draft, embed_tokens: Tensor, head: Tensor, norm: Tensor, rows: CapturedRows, generator: torch.Generator
) -> None:
    """Turn all but one attention head of a fresh draft into copying ones. Changes fc and the input norms too.

    Args:
        embed_tokens: [V, H]. head: [Vd, H], the LM head's rows. norm: [H], weight of the final norm.
    """
    config = draft.config
    num_copy = max(1, config.num_key_value_heads - 1)
    embed = embed_tokens.float()
    spoken = head.float() * norm.float()
    with torch.no_grad():
        draft.midlayer.input_layernorm.weight.fill_(1.0)
        draft.midlayer.hidden_norm.weight.fill_(1.0)
        to_code = _whitening(_normed(embed[rows.token_ids.unique()], config), min(CODE_SIZE, config.hidden_size // 2))
        size = to_code.shape[1]
        quiet = torch.linalg.svd(spoken, full_matrices=True)[2][-size:]  # [C, H], least heard directions
        spread = _write_codes(draft, rows, _normed(embed, config) @ to_code, quiet)
        _match(draft, num_copy, to_code, quiet, spread, generator)
        _speak(draft, num_copy, _normed(head.float(), config), spoken, rows)


def _normed(embed: Tensor, config: DraftConfig) -> Tensor:
    return embed * torch.rsqrt(embed.square().mean(-1, keepdim=True) + config.rms_norm_eps)


def _whitening(vectors: Tensor, size: int) -> Tensor:
    """[H, size]: vectors @ result has unit variance and, whatever their mean, none in its direction."""
    mean = vectors.mean(0)
    along = mean / mean.norm().clamp(min=1e-12)
    centred = vectors - mean
    centred = centred - (centred @ along).unsqueeze(1) * along
    values, directions = torch.linalg.eigh(centred.t() @ centred / len(vectors))
    values, directions = values.flip(0)[:size], directions.flip(1)[:, :size]
    directions = directions - torch.outer(along, along @ directions)
    return directions / (values.clamp(min=0).sqrt() + 1e-3 * values[0].clamp(min=0).sqrt() + 1e-6)


def _write_codes(draft: Eagle3Draft, rows: CapturedRows, codes: Tensor, quiet: Tensor) -> float:
    """Make fc write the code of each row's own token into `quiet`; returns the code's spread after hidden_norm."""
    config = draft.config
    aux = rows.aux.float()
    low = aux[:, : config.target_hidden_size]
    scale = low.square().mean(0).sqrt() + 1e-3
    x = low / scale
    gram = x.t() @ x / len(x)
    # No intercept: fc has none. The states' constant directions serve as one.
    fitted = torch.linalg.solve(gram + RIDGE * torch.eye(len(gram)), x.t() @ codes[rows.token_ids] / len(x))
    loud = torch.eye(config.hidden_size) - quiet.t() @ quiet
    weight = draft.fc.weight
    weight.copy_(loud @ weight)
    volume = (aux @ weight.t()).square().mean().sqrt()
    weight[:, : config.target_hidden_size] += quiet.t() @ (fitted / scale.unsqueeze(1)).t() * volume
    hidden = aux @ weight.t()
    hidden = hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + config.rms_norm_eps)
    # Rows that tell nothing about their token (all alike, say) give no code; do not amplify what is not there.
    return max(float((hidden @ quiet.t()).std()), MIN_SPREAD)


def _match(
    draft: Eagle3Draft, num_copy: int, to_code: Tensor, quiet: Tensor, spread: float, generator: torch.Generator
) -> None:
    """Queries and keys of the copying heads; each matches on its own random mix of the code."""
    config, attention = draft.config, draft.midlayer.self_attn
    half, hidden = config.head_dim // 2, config.hidden_size
    turns = config.rope_theta ** -(torch.arange(half) / half)
    slow = (turns <= MAX_TURN).nonzero().flatten()[: to_code.shape[1] // 2]
    carriers = torch.cat([slow, slow + half])
    strength = (MATCH_SHARPNESS * config.head_dim**0.5 / len(carriers)) ** 0.5
    per_kv = config.num_attention_heads // config.num_key_value_heads
    for kv in range(num_copy):
        mix = torch.linalg.qr(torch.randn(to_code.shape[1], len(carriers), generator=generator))[0]
        key = torch.zeros(config.head_dim, 2 * hidden)
        key[carriers, hidden:] = strength / spread * (mix.t() @ quiet)
        attention.k_proj.weight.view(-1, config.head_dim, 2 * hidden)[kv] = key
        query = torch.zeros(config.head_dim, 2 * hidden)
        query[carriers, :hidden] = strength * (to_code @ mix).t()
        attention.q_proj.weight.view(-1, config.head_dim, 2 * hidden)[kv * per_kv] = query


def _speak(draft: Eagle3Draft, num_copy: int, tokens: Tensor, spoken: Tensor, rows: CapturedRows) -> None:
    """Values and output of the copying heads: together they carry num_copy * D main directions of the tokens."""
    config, attention = draft.config, draft.midlayer.self_attn
    dim, hidden = config.head_dim, config.hidden_size
    size = min(num_copy * dim, hidden - 1, len(tokens) - 1)
    to_value = _whitening(tokens, size)
    wanted = spoken - spoken.mean(0)
    back = torch.linalg.lstsq(tokens @ to_value, wanted).solution  # [size, H]
    residual = rows.aux.float() @ draft.fc.weight.t()
    volume = residual.square().mean(-1).sqrt().median()
    back = back * (COPY_STRENGTH * 10.0 * volume / wanted.square().sum(-1).mean())
    per_kv = config.num_attention_heads // config.num_key_value_heads
    for kv in range(num_copy):
        part = slice(kv * dim, min((kv + 1) * dim, size))
        used = part.stop - part.start
        if used <= 0:
            break
        value = torch.zeros(dim, 2 * hidden)
        value[:used, :hidden] = to_value[:, part].t()
        attention.v_proj.weight.view(-1, dim, 2 * hidden)[kv] = value
        head = kv * per_kv
        attention.o_proj.weight[:, head * dim : head * dim + used] = back[part].t()

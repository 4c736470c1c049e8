"""Small random drafts and samples, and the serving chain written the slow, obvious way."""

import numpy as np
import torch
from torch import Tensor

from tide_daemon.draft.config import DraftConfig
from tide_daemon.draft.model import Eagle3Draft, rotary_tables
from tide_daemon.trainer.sample import Sample

VOCAB, DRAFT_VOCAB, HIDDEN = 60, 24, 16


def draft_config(**changes: object) -> DraftConfig:
    fields: dict[str, object] = {
        "hidden_size": HIDDEN,
        "target_hidden_size": HIDDEN,
        "intermediate_size": 24,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
        "max_position_embeddings": 128,
        "vocab_size": VOCAB,
        "draft_vocab_size": DRAFT_VOCAB,
        "aux_layer_ids": (0, 1, 2),
    }
    return DraftConfig(**{**fields, **changes})  # type: ignore[arg-type]


def random_draft(seed: int = 0, **changes: object) -> Eagle3Draft:
    generator = torch.Generator().manual_seed(seed)
    draft = Eagle3Draft(draft_config(**changes))
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return draft


def embeddings(seed: int = 7) -> Tensor:
    return torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(seed))


def sample(
    seed: int, rows: int, prompt: int, *, first_position: int = 0, known_next: bool = True, k: int = 3
) -> Sample:
    """A request whose first `prompt` rows are prompt."""
    random = np.random.default_rng(seed)
    aux = torch.from_numpy(random.normal(size=(rows, 3 * HIDDEN)).astype(np.float32)).to(torch.bfloat16)
    topk = np.stack([random.permutation(VOCAB)[:k] for _ in range(rows)]).astype(np.int32)
    topk[: max(0, prompt - 1)] = -1
    return Sample(
        request_id=f"{seed:032x}",
        workload="test",
        first_position=first_position,
        token_ids=random.integers(0, VOCAB, rows).astype(np.int32),
        loss_mask=(np.arange(rows) >= prompt).astype(np.uint8),
        topk_ids=topk,
        topk_logprobs=np.log(random.dirichlet(np.ones(k + 1), rows)[:, :k]).astype(np.float16),
        aux=aux.view(torch.int16).numpy().view(np.uint16),
        next_token_id=int(random.integers(0, VOCAB)) if known_next else -1,
    )


def serve_chain(
    draft: Eagle3Draft, embed: Tensor, given: Sample, start: int, num_steps: int, tokens: list[int]
) -> list[Tensor]:
    """The chain that starts at row `start`, one row at a time with a growing KV cache, as an engine runs it.

    Args:
        tokens: the token after each of the sample's rows and those of the chain: tokens[r] follows row r.

    Returns:
        The carried hidden state [H] of each step.
    """
    keys: list[Tensor] = []
    values: list[Tensor] = []
    aux = torch.from_numpy(given.aux.view(np.int16)).view(torch.bfloat16).to(embed.dtype)

    def row(hidden: Tensor, token: int, position: int) -> Tensor:
        attention = draft.midlayer.self_attn
        x = draft.midlayer.attention_input(hidden, embed[token])
        cos, sin = rotary_tables(torch.tensor([position]), draft.config)
        q, k, v = (part[0, 0] for part in attention.qkv(x[None, None], cos, sin))
        keys.append(k)
        values.append(v)
        group = attention.num_heads // attention.num_kv_heads
        heads = []
        for head in range(attention.num_heads):
            key = torch.stack([k[head // group] for k in keys])
            value = torch.stack([v[head // group] for v in values])
            weights = (key @ q[head] / attention.head_dim**0.5).softmax(0)
            heads.append(weights @ value)
        return draft.midlayer.after_attention(hidden, torch.cat(heads))

    hidden = torch.zeros(0)
    for r in range(start + 1):
        hidden = row(draft.fc(aux[r]), tokens[r], given.first_position + r)
    states = [hidden]
    for step in range(1, num_steps):
        hidden = row(hidden, tokens[start + step], given.first_position + start + step)
        states.append(hidden)
    return states

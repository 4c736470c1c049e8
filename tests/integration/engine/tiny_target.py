"""A tiny Llama with random weights, a tokenizer and a draft that has memorised it: real SGLang, no download.

Random weights decode to varied text for a while, and in float32 without ties, which is what exactness
tests need. The memorised draft's LM head is the least-squares map from the target's high aux layer at a
position to the token two further on: on texts that it was made from its first proposal is right.
"""

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tide_daemon.draft.checkpoint import Checkpoint, placeholder, save
from tide_daemon.draft.config import DraftConfig, config_for_target
from tide_daemon.draft.model import Eagle3Draft, rotary_tables
from tide_daemon.draft.vocab import map_from_ids

VOCAB = 512
HIDDEN = 256
AUX_LAYERS = (1, 3, 4)
DRAFT_VOCAB = 384


def write_target(directory: Path, seed: int = 0) -> Path:
    """Write the target in Hugging Face format, float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        initializer_range=0.12,
        bos_token_id=1,
        eos_token_id=2,
        dtype="float32",
    )
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(directory)
    words = {f"w{i}": i for i in range(VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="w1", eos_token="w2", unk_token="w0")
    fast.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    fast.save_pretrained(directory)
    return directory


def draft_config(target: Path) -> DraftConfig:
    """Shapes of the tiny target's drafts."""
    return config_for_target(json.loads((target / "config.json").read_text()), AUX_LAYERS, DRAFT_VOCAB)


def hidden_states(model: LlamaForCausalLM, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Reference by transformers: aux states [n, A*H] (outputs of AUX_LAYERS) and log-probabilities [n, V], float32."""
    with torch.no_grad():
        out = model(torch.tensor([ids]), output_hidden_states=True)
    aux = torch.cat([out.hidden_states[layer + 1][0] for layer in AUX_LAYERS], -1)
    return aux.numpy(), torch.log_softmax(out.logits[0], -1).numpy()


def write_memorised_draft(
    directory: Path, target: Path, texts: list[list[int]], seed: int = 0, *, attends: bool = False
) -> Checkpoint:
    """Write a draft whose first proposal is right on `texts`; different seeds give different contents.

    Args:
        attends: let most of what the head reads come through attention, so that the draft is only right when its
            KV cache is.
    """
    model = LlamaForCausalLM.from_pretrained(target, dtype=torch.float32)
    config = draft_config(target)
    tensors = {name: tensor.clone() for name, tensor in placeholder(config).tensors.items()}
    counts = np.bincount(np.concatenate(texts), minlength=VOCAB)
    kept = torch.from_numpy(np.sort(np.argsort(-counts, kind="stable")[:DRAFT_VOCAB]).copy())
    vocab = map_from_ids(kept, VOCAB)
    tensors["d2t"], tensors["t2d"] = vocab.d2t, vocab.t2d
    generator = torch.Generator().manual_seed(seed)
    tensors["fc.weight"][:, -HIDDEN:] = torch.eye(HIDDEN) * (0.001 if attends else 1.0)
    for name in ("q", "k", "v", "o"):
        weight = tensors[f"midlayer.self_attn.{name}_proj.weight"]
        scale = 0.0 if name == "o" and not attends else 1.0
        weight.copy_(scale * torch.randn(weight.shape, generator=generator) / weight.shape[1] ** 0.5)
    draft = Eagle3Draft(config).float()
    draft.load_state_dict({name: t.float() for name, t in tensors.items() if name not in ("d2t", "t2d")})
    to_draft = {int(token): index for index, token in enumerate(kept)}
    inputs, outputs = [], []
    for ids in texts:
        features = _features(model, draft, ids)
        for position in range(len(ids) - 2):
            if (wanted := to_draft.get(ids[position + 2])) is not None:
                inputs.append(features[position])
                outputs.append(wanted)
    x = torch.stack(inputs)
    y = torch.nn.functional.one_hot(torch.tensor(outputs), DRAFT_VOCAB).float() * 20
    head = torch.linalg.solve(x.T @ x + 1e-2 * torch.eye(HIDDEN), x.T @ y).T
    tensors["lm_head.weight"] = (head + 1e-3 * torch.randn(head.shape, generator=generator)).to(torch.bfloat16)
    return save(directory, config, tensors)


@torch.no_grad()
def _features(model: LlamaForCausalLM, draft: Eagle3Draft, ids: list[int]) -> torch.Tensor:
    """What the draft's head reads at each position but the last, [n - 1, H]."""
    aux, _ = hidden_states(model, ids)
    hidden = draft.fc(torch.from_numpy(aux[:-1]))[None]
    embeds = model.model.embed_tokens(torch.tensor(ids[1:]))[None]
    cos, sin = rotary_tables(torch.arange(len(ids) - 1)[None], draft.config)
    q, k, v = draft.midlayer.self_attn.qkv(draft.midlayer.attention_input(hidden, embeds), cos, sin)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    hidden = draft.midlayer.after_attention(hidden, attended.transpose(1, 2).flatten(2))
    return draft.norm(hidden)[0]

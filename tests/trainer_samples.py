"""A tiny target for trainer tests: its folder, its spec, and chunks of requests that it seems to have answered.

Tokens follow a fixed rule and the aux states of a row hold the embeddings of its token and of the two that follow,
so a draft can learn to accept most of its chain within seconds.
"""

import hashlib
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from tide_daemon.trainer.frozen import LAYER_TENSORS
from tide_daemon.wire.records import HiddenChunk, TargetSpec

HIDDEN, VOCAB, LAYERS = 32, 256, (0, 1, 2)
PROMPT, RESPONSE = 8, 24
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": HIDDEN,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 4,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
    "vocab_size": VOCAB,
    "tie_word_embeddings": True,
    "eos_token_id": 0,
}
SPEC = TargetSpec("tiny", "ab" * 32, "cd" * 32, LAYERS, HIDDEN, VOCAB)


def embedding() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(VOCAB, HIDDEN, generator=generator).to(torch.bfloat16)


def write_target(folder: Path) -> Path:
    """A folder with config.json and the safetensors that a trainer reads."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    generator = torch.Generator().manual_seed(2)
    shapes = {
        "input_layernorm": (HIDDEN,),
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (HIDDEN // 2, HIDDEN),
        "self_attn.v_proj": (HIDDEN // 2, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "post_attention_layernorm": (HIDDEN,),
        "mlp.gate_proj": (64, HIDDEN),
        "mlp.up_proj": (64, HIDDEN),
        "mlp.down_proj": (HIDDEN, 64),
    }
    assert shapes.keys() == set(LAYER_TENSORS)
    tensors = {
        f"model.layers.3.{name}.weight": torch.ones(shape)
        if len(shape) == 1
        else torch.randn(shape, generator=generator) / shape[1] ** 0.5
        for name, shape in shapes.items()
    }
    tensors["model.norm.weight"] = torch.ones(HIDDEN)
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    tensors["model.embed_tokens.weight"] = embedding()
    save_file(tensors, folder / "model.safetensors")
    return folder


def request_id(number: int) -> str:
    return hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()


def answer(number: int, length: int) -> np.ndarray:
    """Token ids of request `number`: from a start that depends on it, each follows from the one before."""
    tokens = np.empty(length, dtype=np.int32)
    tokens[0] = (number * 7 + 1) % 64
    for i in range(1, length):
        tokens[i] = (tokens[i - 1] * 5 + 3) % 64
    return tokens


def chunks(
    number: int,
    *,
    workload: str = "code",
    num_chunks: int = 2,
    spec: TargetSpec = SPEC,
    captured_at: float | None = None,
    node: str = "node-a",
) -> Iterator[HiddenChunk]:
    """The chunks of one finished request, captured now unless told."""
    rows = PROMPT + RESPONSE
    tokens = answer(number, rows + 2)
    bits = embedding().view(torch.int16).numpy().view(np.uint16)
    aux = np.concatenate([bits[tokens[i : rows + i]] for i in range(3)], axis=1)
    topk_ids = np.stack([tokens[1 : rows + 1], (tokens[1 : rows + 1] + 1) % VOCAB], axis=1).astype(np.int32)
    topk_logprobs = np.tile(np.log([0.9, 0.1]).astype(np.float16), (rows, 1))
    bounds = np.linspace(0, rows, num_chunks + 1).astype(int)
    for index, (start, end) in enumerate(itertools.pairwise(bounds)):
        part = slice(start, end)
        yield HiddenChunk(
            spec=spec,
            node=node,
            request_id=request_id(number),
            workload=workload,
            chunk_index=index,
            last=index == num_chunks - 1,
            incomplete=False,
            first_position=int(start),
            captured_at=time.time() if captured_at is None else captured_at,
            draft_version=0,
            codec="bf16-planes",
            token_ids=tokens[part].copy(),
            loss_mask=(np.arange(start, end) >= PROMPT).astype(np.uint8),
            next_token_id=int(tokens[end]),
            topk_ids=topk_ids[part],
            topk_logprobs=topk_logprobs[part],
            aux=aux[part],
        )

import pytest
import torch

from tide_daemon.draft.checkpoint import Checkpoint, expected_tensors, validate
from tide_daemon.draft.config import DraftConfig
from tide_daemon.draft.vocab import map_from_ids


def small_config(**changes: object) -> DraftConfig:
    fields: dict[str, object] = {
        "hidden_size": 32,
        "target_hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
        "max_position_embeddings": 128,
        "vocab_size": 100,
        "draft_vocab_size": 40,
        "aux_layer_ids": (0, 2, 3),
    }
    return DraftConfig(**{**fields, **changes})  # type: ignore[arg-type]


def random_checkpoint(config: DraftConfig, seed: int = 0) -> Checkpoint:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(shape, generator=generator).to(dtype)
        for name, (dtype, shape) in expected_tensors(config).items()
        if dtype == torch.bfloat16
    }
    ids = torch.randperm(config.vocab_size, generator=generator)[: config.draft_vocab_size]
    vocab = map_from_ids(ids, config.vocab_size)
    return validate(config, {**tensors, "d2t": vocab.d2t, "t2d": vocab.t2d})


@pytest.fixture
def config() -> DraftConfig:
    return small_config()


@pytest.fixture
def checkpoint(config: DraftConfig) -> Checkpoint:
    return random_checkpoint(config)

"""Sizes: the paper's figures, the model cards', and our own code's."""

import json
from pathlib import Path

import numpy as np
import pytest

from tide_daemon.draft.config import config_for_target
from tide_daemon.sizing import drafts, stream
from tide_daemon.sizing.known_models import SOURCES, known_target
from tide_daemon.sizing.targets import TargetShape, read_target, target_from_config
from tide_daemon.wire import tensors


def known(name: str) -> TargetShape:
    target = known_target(name)
    assert target is not None
    return target


def test_bytes_of_a_token() -> None:
    """gpt-oss-120b: 2,880 x 3 x 2 = 17,280 bytes a token. Source: TIDE v2 section V-E."""
    assert stream.aux_bytes(3, known("gpt-oss-120b").hidden_size) == 17_280


@pytest.mark.parametrize(("tokens_per_s", "mib_per_s"), [(6000, 99), (7000, 116)])
def test_mib_per_second(tokens_per_s: float, mib_per_s: float) -> None:
    """One TP4 instance at 6,000 to 7,000 tokens/s writes 99 to 116 MiB/s. Source: TIDE v2 section V-E."""
    size = stream.stream_size(3, 2880, "bf16", tokens_per_s)
    assert size.raw_bytes_per_token * tokens_per_s / 2**20 == pytest.approx(mib_per_s, rel=0.02)


@pytest.mark.parametrize(
    ("name", "offline_tb", "window_tb"),
    [
        ("gpt-oss-120b", 4.66, 0.19),
        ("Qwen3-235B-A22B", 6.63, 0.27),
        ("Llama-4-Scout", 8.29, 0.34),
        ("Llama-3.3-70B", 13.26, 0.55),
    ],
)
def test_storage_of_table_1(name: str, offline_tb: float, window_tb: float) -> None:
    """Source: TIDE v2 Table I. Derived: both columns are 4 H a token, over 202 and 8.35 million tokens (from the last
    row; the other three rows test it). 24x less by the text of section V-D."""
    hidden = known(name).hidden_size
    assert stream.offline_bytes(stream.PAPER_OFFLINE_TOKENS, hidden) / 1e12 == pytest.approx(offline_tb, rel=0.02)
    assert stream.offline_bytes(stream.PAPER_WINDOW_TOKENS, hidden) / 1e12 == pytest.approx(window_tb, rel=0.02)
    assert pytest.approx(24, rel=0.02) == stream.PAPER_OFFLINE_TOKENS / stream.PAPER_WINDOW_TOKENS


@pytest.mark.parametrize(
    ("name", "total_b", "active_b", "tolerance"),
    [
        ("gpt-oss-120b", 116.8, 5.1, 0.01),  # model card: 117B, 5.1B active; gpt-oss report: 116.8B
        ("Qwen3-235B-A22B", 235, 22, 0.02),  # model card
        ("Llama-3.3-70B", 70.6, None, 0.01),  # sum over the repository's tensors
        ("Llama-4-Scout", 109, 17, 0.06),  # model card, vision tower and embedding included
        ("Qwen3-8B", 8.2, None, 0.01),  # model card
        ("SmolLM2-135M", 0.1345, None, 0.01),  # sum over the repository's tensors
    ],
)
def test_parameter_counts(name: str, total_b: float, active_b: float | None, tolerance: float) -> None:
    """What follows from the built-in fields is what the models' cards say."""
    target = known(name)
    assert name in SOURCES
    assert target.total_params / 1e9 == pytest.approx(total_b, rel=tolerance)
    if active_b is not None:
        assert target.active_params / 1e9 == pytest.approx(active_b, rel=tolerance)


def test_weights_of_gpt_oss_fit_its_checkpoint() -> None:
    """60.8 GiB with mxfp4 experts. Source: gpt-oss model card, Table 1."""
    assert known("gpt-oss-120b").weight_bytes() / 2**30 == pytest.approx(60.8, rel=0.02)


def test_experts_read_grow_to_all() -> None:
    """One token reads its own experts, many tokens nearly all; a dense model the same for any number."""
    moe, dense = known("gpt-oss-120b"), known("Qwen3-8B")
    one = moe.weight_bytes(1)
    active = moe.num_layers * 4 * moe.expert_params * 4.25 / 8
    assert one == pytest.approx(moe.fixed_params * 2 + active)
    assert one < moe.weight_bytes(8) < moe.weight_bytes(1000) < moe.weight_bytes()
    assert dense.weight_bytes(1) == dense.weight_bytes(1000) < dense.weight_bytes()


def test_a_config_file_is_read(tmp_path: Path) -> None:
    """By file or folder; parts of several modalities by their text_config."""
    config = dict(known("SmolLM2-135M").config)
    (tmp_path / "config.json").write_text(json.dumps({"text_config": config}))
    for path in (tmp_path, tmp_path / "config.json"):
        assert read_target(path).total_params == known("SmolLM2-135M").total_params


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "no num_attention_heads|no hidden_size"),
        ('{"hidden_size": "big"}', "must be a positive integer"),
        ('{"hidden_size": 0}', "must be a positive integer"),
        ('{"text_config": 3}', "not an object"),
    ],
)
def test_a_bad_config_is_refused(tmp_path: Path, content: str, problem: str) -> None:
    """With one error type and a sentence."""
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=problem):
        read_target(tmp_path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_target(tmp_path / "nothing.json")


@pytest.mark.parametrize("codec", stream.COMPRESSION)
@pytest.mark.parametrize("hidden", [576, 2880, 100])
def test_encoded_bytes_are_the_wires(codec: str, hidden: int) -> None:
    """The sum without numpy is what the codec makes, and what a message holds."""
    row = np.zeros((1, 3 * hidden), np.uint16)
    assert stream.encoded_bytes(3, hidden, codec) == len(tensors.encode(row, codec))
    size = stream.stream_size(3, hidden, codec, 1e9, num_running=1)
    rows = tensors.rows_per_chunk(768 * 1024, 3 * hidden, 16, codec)
    assert 1e9 / size.messages_per_s == pytest.approx(rows)


def test_slow_requests_make_small_messages() -> None:
    """100 requests at 2 tokens/s each: what 5 s bring is a message."""
    size = stream.stream_size(3, 576, "bf16-planes", 200.0, num_running=100)
    assert size.messages_per_s == pytest.approx(200 / 10)


def test_retention_and_size_are_inverse() -> None:
    """What an hour takes holds an hour."""
    size = stream.stream_size(3, 2880, "bf16-planes", 6500.0)
    assert size.held_s(size.held_bytes(3600.0)) == pytest.approx(3600.0)


def test_an_unknown_codec_is_refused() -> None:
    with pytest.raises(ValueError, match="codec must be one of"):
        stream.encoded_bytes(3, 576, "zip")


def test_a_drafts_size_is_the_models() -> None:
    """Counted by formula and on the module that trainer and engine use."""
    from tide_daemon.draft.model import Eagle3Draft

    target = {**known("SmolLM2-135M").config, "hidden_size": 64, "head_dim": 16, "num_attention_heads": 4,
              "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 500}  # fmt: skip
    config = config_for_target(target, (1, 5, 9), 200)
    module = Eagle3Draft(config)
    counted = sum(p.numel() for name, p in module.named_parameters() if "embed" not in name)
    assert drafts.draft_params(config) == counted


def test_unknown_names_are_none_and_shared_experts_are_llama_4s() -> None:
    assert known_target("gpt-5") is None
    assert known_target("GPT-OSS-120B") == known("gpt-oss-120b")
    assert known("Llama-4-Scout").num_shared_experts == 1
    assert target_from_config("x", {**known("Qwen3-8B").config, "num_key_value_heads": None}).num_kv_heads == 32

"""The plan command: the answer in words and as JSON, and what it says to wrong values."""

import json
from pathlib import Path

import pytest

from tide_daemon.cli import main
from tide_daemon.tools.plan_text import size, span

FLEET = ["--tokens-per-s", "6500", "--devices", "h100=8,mi250=4"]


def test_the_papers_fleet_on_science(capsys: pytest.CaptureFixture[str]) -> None:
    """Static 1.14, adapted 1.31: train on the MI250s."""
    assert main(["plan", "gpt-oss-120b", *FLEET, "--static", "1.14", "--adapted", "1.31"]) == 0
    text = capsys.readouterr().out
    assert "states of one token in bf16: 17,280 B (107.1 MiB/s before compression)" in text
    assert "ANSWER: 8 h100 serve, 4 mi250 train." in text
    assert "take" in text and "4.66 TB" in text and "192 GB, 24 times less" in text
    assert "1 h take 287 GB, 24 h take 6.89 TB, 168 h take 48.2 TB" in text
    assert max(len(line) for line in text.splitlines()) <= 132


def test_do_not_train_where_it_does_not_pay(capsys: pytest.CaptureFixture[str]) -> None:
    """ShareGPT's 1.16 over 1.14."""
    assert main(["plan", "gpt-oss-120b", *FLEET, "--static", "1.14", "--adapted", "1.16"]) == 0
    text = capsys.readouterr().out
    assert "ANSWER: do not train on these (8 h100 and 4 mi250): all serve with a static draft." in text
    assert "it would pay from an adapted speed-up of 1.224 (against plain serving from 1.074)" in text


def test_json_holds_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """Every section, as plain values."""
    assert main(["plan", "gpt-oss-120b", *FLEET, "--static", "1.14", "--adapted", "1.31", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["stream"]["by_codec"]["bf16"]["raw_bytes_per_token"] == 17_280
    assert plan["allocation"]["train"] == {"mi250": 4} and plan["allocation"]["pays"] is True
    assert plan["allocation"]["over"]["fast serve with a static draft, slow serve plain"] == pytest.approx(
        1.08, rel=0.02
    )
    assert set(plan["break_even"]["accept_length_by_batch"]) >= {"1", "8", "64"}


def test_explicit_speeds_and_a_config_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Devices that nobody knows, a model that is only a file: no break-even, but an answer."""
    config = {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 2048,
              "vocab_size": 1000, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "max_position_embeddings": 2048}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    words = ["--tokens-per-s", "10", "--devices", "big=4,small=8", "--speed", "big=5:2,small=1:1", "--adapted", "1.5"]
    assert main(["plan", str(tmp_path), *words]) == 0
    text = capsys.readouterr().out
    assert "BREAK-EVEN" not in text
    assert "ANSWER: 4 big and 6 small serve, 2 small train." in text


def test_devices_that_do_not_hold_the_target_can_only_train(capsys: pytest.CaptureFixture[str]) -> None:
    """470 GB of Qwen3-235B-A22B and four MI250 of 128 GB."""
    assert main(["plan", "qwen3-235b-a22b", *FLEET, "--static", "1.14", "--adapted", "1.16"]) == 0
    text = capsys.readouterr().out
    assert "4 mi250 do not hold the target's weights and cannot serve it" in text
    assert "ANSWER: 8 h100 serve, 4 mi250 train." in text
    assert main(["plan", "qwen3-235b-a22b", "--tokens-per-s", "9", "--devices", "mi250=4"]) == 2
    assert "none of these devices can serve the target" in capsys.readouterr().err


def test_one_device_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "Qwen3-8B", "--tokens-per-s", "10", "--devices", "h100=1"]) == 0
    assert "do not train on these: too few devices" in capsys.readouterr().out


def test_without_devices_it_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "smollm2-135m", "--tokens-per-s", "10"]) == 0
    assert "say which devices there are" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["nothing", "--tokens-per-s", "1"], "neither a file or folder nor one of gpt-oss-120b"),
        (["Qwen3-8B", "--tokens-per-s", "0"], "must be positive"),
        (["Qwen3-8B", "--tokens-per-s", "1", "--devices", "tpu=4"], "say --speed tpu=SERVING:TRAINING"),
        (["Qwen3-8B", "--tokens-per-s", "1", "--devices", "h100=none"], "must be a positive integer"),
        (["Qwen3-8B", "--tokens-per-s", "1", "--devices", "h100"], "wants NAME=VALUE"),
        (["Qwen3-8B", "--tokens-per-s", "1", "--speed", "a=1"], "in numbers"),
        (["Qwen3-8B", "--tokens-per-s", "1", "--devices", "h100=1", "--static", "-1"], "must be positive"),
        (["Qwen3-8B", "--tokens-per-s", "1", "--aux-layers", "1"], "aux_layer_ids"),
    ],
)
def test_wrong_values_end_with_2(words: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And one sentence."""
    assert main(["plan", *words]) == 2
    assert problem in capsys.readouterr().err


def test_units() -> None:
    assert [size(value) for value in (12, 17_280, 4.66e12)] == ["12 B", "17.3 kB", "4.66 TB"]
    assert [span(value) for value in (13.4, 600, 7200, 864_000)] == ["13.4 seconds", "10 minutes", "2 hours", "10 days"]

"""`tide-daemon simulate`: files and names, what is printed, what is written."""

import json
from pathlib import Path

import pytest

from tide_daemon import cli
from tide_daemon.exit_codes import ExitCode

SCENARIO = """
title = "tiny"
seed = 1
report_s = 1.0
[policy]
max_batch_size = 32
train_min_tokens = 100_000
train_shift_tokens = 50_000
max_steps = 2
[cost.gpu]
tokens = [1, 64, 256]
target_ms = [5.0, 10.0, 15.0]
draft_ms = 0.5
[[servers]]
name = "gpu"
count = 1
cost = "gpu"
[[trainers]]
name = "trainer"
count = 1
tokens_per_s = 20_000
[workload.chat]
start = 0.2
ceiling = 0.7
half_tokens = 100_000
[first_draft]
chat = 10_000
[[phase]]
name = "chat"
hours = 0.1
running = 8
mix = { chat = 1.0 }
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(SCENARIO)
    return path


def test_figures_and_a_picture_are_written(scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON with every part of the reference, one picture, and the main figures on standard output."""
    out, pictures = tmp_path / "out" / "tiny.json", tmp_path / "pictures"
    assert (
        cli.main(["simulate", str(scenario), "--json", str(out), "--plot", str(pictures), "--seed", "5"]) == ExitCode.OK
    )
    result = json.loads(out.read_text())
    assert (result["scenario"], result["seed"]) == ("tiny", 5)
    assert set(result["tokens_by_policy"]) == {"tide", "plain", "static", "newest"}
    assert {len(column) for column in result["series"].values()} == {len(result["series"]["at_s"])}
    assert (pictures / "tiny.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "TIDE over it" in printed and "worst 10 minutes" in printed


def test_without_comparison_only_tide_runs(scenario: Path, tmp_path: Path) -> None:
    """For large fleets: tokens of one policy."""
    out = tmp_path / "tiny.json"
    assert cli.main(["simulate", str(scenario), "--json", str(out), "--no-compare"]) == ExitCode.OK
    assert set(json.loads(out.read_text())["tokens_by_policy"]) == {"tide"}


def test_the_list_and_the_reference(capsys: pytest.CaptureFixture[str]) -> None:
    """Shipped names with titles; the format's description."""
    assert cli.main(["simulate", "--list"]) == ExitCode.OK
    assert "flapping" in capsys.readouterr().out
    assert cli.main(["simulate", "--reference"]) == ExitCode.OK
    assert "[cost.NAME]" in capsys.readouterr().out


def test_problems_are_the_user_s_to_mend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A bad file, a name that is none, no name: exit code for wrong usage, and words."""
    bad = tmp_path / "bad.toml"
    bad.write_text(SCENARIO.replace("seed = 1", "sead = 1"))
    assert cli.main(["simulate", str(bad)]) == ExitCode.USAGE
    said = capsys.readouterr().err
    assert "seed is missing" in said and "sead: there is no such key" in said
    assert cli.main(["simulate", "nothing-of-the-kind"]) == ExitCode.USAGE
    assert cli.main(["simulate"]) == ExitCode.USAGE

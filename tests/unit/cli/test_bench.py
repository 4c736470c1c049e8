"""ops/bench: floors are held, missing figures fail, the file has the agreed shape."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

CHECK = """
import sys
from pathlib import Path
from benches import __main__ as bench
from benches.floors import BENCHES
from benches.settings import Settings

swap = BENCHES["swap"]
good = {"gap_ratio": 1.5, "requests_lost": 0.0, "extra": 3.0}
assert bench.passed(swap, good)
assert not bench.passed(swap, good | {"requests_lost": 1.0})
assert not bench.passed(swap, good | {"gap_ratio": float("nan")})
assert not bench.passed(swap, {"gap_ratio": 1.5})
assert "FAIL" in bench.table(swap, {"gap_ratio": 2.5}) and "missing" in bench.table(swap, {})
settings = Settings(Path("/nowhere"), {"seconds": "3", "typo": "1"})
assert settings.integer("seconds", 60) == 3 and settings.number("share", 0.5) == 0.5
assert settings.unknown() == {"typo"}
bench.write(Path(sys.argv[1]), "swap", settings, good)
"""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "ops")}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=60, check=False, env=environment
    )


def test_figures_are_held_to_their_floors_and_written(tmp_path: Path) -> None:
    """NaN and missing figures fail; the options that were in force are in the file."""
    path = tmp_path / "swap.json"
    done = run("-c", CHECK, str(path))
    assert done.returncode == 0, done.stderr
    document = json.loads(path.read_text())
    assert set(document) == {"bench", "commit", "machine", "versions", "settings", "figures"}
    assert document["figures"] == {"gap_ratio": 1.5, "requests_lost": 0.0, "extra": 3.0}
    assert document["settings"] == {"seconds": 3, "share": 0.5}


def test_the_list_names_every_bench() -> None:
    """With its figures and floors."""
    text = run("-m", "benches", "--list").stdout
    names = "step speculate learn capture swap spine memory takeover model-error shift-real"
    for name in names.split():
        assert f"\n{name}\n" in f"\n{text}"
    assert "plain_over_linear_b1 <= 3.5" in text


def test_wrong_words_end_with_2(tmp_path: Path) -> None:
    """An unknown bench, no bench, a folder that is not there."""
    for words in (["nothing"], [], ["swap", "--json", str(tmp_path / "no" / "x.json")], ["swap", "--set", "x"]):
        assert run("-m", "benches", *words).returncode == 2

"""A real bash completes subcommands, verbs and options."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tide_daemon import cli

shtab = pytest.importorskip("shtab", reason="shtab is not installed")


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_each_shell_gets_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With every subcommand in it."""
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in cli.SUBCOMMANDS)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["tide-daemon", "dra"], {"drafts"}),
        (["tide-daemon", "drafts", "ro"], {"roll-back"}),
        (["tide-daemon", "status", "--j"], {"--json"}),
    ],
)
def test_bash_completes(
    typed: list[str], expected: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As if tab was pressed after the last word."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    cli.main(["completion", "bash"])
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)
    words = " ".join(typed)
    command = (
        f"source {script}; COMP_WORDS=({words}); COMP_CWORD={len(typed) - 1}; _shtab_tide_daemon; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run([bash, "-c", command], capture_output=True, text=True, timeout=30, check=True)
    assert set(done.stdout.split()) == expected

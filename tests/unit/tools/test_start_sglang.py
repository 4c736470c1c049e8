"""What `tide-daemon sglang` refuses before it touches anything. That its command serves: integration/engine."""

from pathlib import Path

import pytest

from tide_daemon.errors import ConfigError
from tide_daemon.tools.start_sglang import prepared


def settings(folder: Path, mode: str) -> list[str]:
    return [
        "bus.url=nats://127.0.0.1:4222", f"server.mode={mode}", f"server.model_path={folder}",
        f"node.run_dir={folder / 'run'}", f"node.state_dir={folder / 'state'}",
    ]  # fmt: skip


def test_a_daemon_that_starts_sglang_itself_is_not_helped(tmp_path: Path) -> None:
    """Two would start it: the message names the setting."""
    with pytest.raises(ConfigError, match=r'server\.mode is "launch".*Set it to "attach"'):
        prepared(None, settings(tmp_path, "launch"), ())
    assert not (tmp_path / "run").exists()


def test_arguments_that_are_ours_are_refused(tmp_path: Path) -> None:
    """As in server.arguments: what the plug-in needs is not the operator's to set."""
    with pytest.raises(ConfigError, match="--speculative-algorithm"):
        prepared(None, settings(tmp_path, "attach"), ("--speculative-algorithm", "NGRAM"))
    assert not (tmp_path / "run").exists()

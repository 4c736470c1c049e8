"""What a reload takes over, and what it refuses."""

import pytest

from tide_daemon.config import load
from tide_daemon.config.reload import changed_settings
from tide_daemon.config.sections import all_settings
from tide_daemon.errors import ConfigError

BASE = ["bus.url=nats://127.0.0.1:1", "server.model_path=/m"]


def test_changes_are_named() -> None:
    """None, or those that take effect."""
    before = load(("server",), None, {}, BASE)
    assert changed_settings(before, load(("server",), None, {}, BASE)) == []
    after = load(("server",), None, {}, [*BASE, "log.level=debug", "capture.sample_rate=0.1"])
    assert changed_settings(before, after) == ["capture.sample_rate", "log.level"]


def test_one_that_needs_a_restart_refuses_all() -> None:
    """By name, and only those that are to blame."""
    before = load(("server",), None, {}, BASE)
    after = load(("server",), None, {}, [*BASE, "log.level=debug", "server.port=30001", "bus.domain=d"])
    with pytest.raises(ConfigError, match=r"nothing was reloaded: bus.domain, server.port can change at a restart"):
        changed_settings(before, after)


def test_the_reference_says_which() -> None:
    """Every setting that reloads, and no other."""
    reloading = {setting.key for setting in all_settings() if setting.rules.reloads}
    assert reloading == {
        "node.drain_deadline_s", "capture.sample_rate", "capture.max_rows", "capture.excluded_workloads",
        "status.token", "log.level",
    }  # fmt: skip

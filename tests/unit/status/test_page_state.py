"""What the page is sent: chosen by name, and the numbers that the charts draw."""

from collections.abc import Mapping

import pytest

from tide_daemon.status.page_state import page_state

ROWS = [
    {"node": "a", "of_plain": 1.5, "decode_tokens_per_s": 300.0, "plain_tokens_per_s": 200.0, "accept_length": 2.0},
    {"node": "b", "of_plain": 1.0, "decode_tokens_per_s": 100.0, "plain_tokens_per_s": 100.0, "accept_length": None},
    {"node": "idle", "of_plain": None, "decode_tokens_per_s": None, "plain_tokens_per_s": None, "accept_length": None},
]


class Source:
    def __init__(self, **roles: Mapping[str, object]) -> None:
        self._roles = roles

    def snapshot(self) -> Mapping[str, object]:
        return {
            "daemon": {"node": "n1", "model": "m", "secret": "x"},
            "bus": {"connected": True},
            "roles": {name: {"state": "running", "snapshot": shown} for name, shown in self._roles.items()},
        }

    def health(self) -> Mapping[str, str]:
        return {"bus": "ok"}

    def ready(self) -> bool:
        return True


def test_only_what_is_named_is_sent() -> None:
    """A role may offer more; events with request ids in them never get here."""
    overview = {"servers": ROWS, "problems": [{"what": "w", "do": "d", "page": ""}], "prompts": ["secret"]}
    state = page_state(Source(controller={"leading": True, "nodes": {"a": "secret"}, "overview": overview}), 5.0)
    assert "secret" not in str(state)
    assert state["problems"] == [{"what": "w", "do": "d", "page": ""}]
    assert state["controller"] == {"leading": True} and state["server"] is None


def test_the_fleet_as_points() -> None:
    """Tokens are sums over busy nodes, accept length is weighted by tokens among those that draft."""
    trainers = [{"state": "waiting", "loss": 9.0, "step": 5}, {"state": "training", "loss": 1.5, "step": 2}]
    streams = [{"name": "TIDE_JOURNAL", "num_waiting": None}, {"name": "TIDE_HIDDEN", "num_waiting": 12}]
    overview = {"servers": ROWS, "trainers": trainers, "streams": streams}
    assert page_state(Source(controller={"overview": overview}), 5.0)["point"] == {
        "tokens_per_s": 400.0,
        "plain_tokens_per_s": 300.0,
        "accept_length": 2.0,
        "loss": 1.5,
        "waiting": 12.0,
    }


def test_a_server_alone_has_its_own_points() -> None:
    """And an idle one, or nothing at all, draws none."""
    assert page_state(Source(server=ROWS[0]), 5.0)["point"] == pytest.approx(
        {"tokens_per_s": 300.0, "plain_tokens_per_s": 200.0, "accept_length": 2.0}
    )
    assert page_state(Source(server=ROWS[2]), 5.0)["point"] == {}
    assert page_state(Source(), 5.0)["point"] == {}
    assert page_state(Source(trainer={"state": "training", "loss": 2.0, "step": 1}), 5.0)["point"] == {"loss": 2.0}

"""Acknowledgement subjects of JetStream, with and without a domain."""

import pytest

from tide_daemon.bus.pull import AckInfo, parse_ack_subject
from tide_daemon.errors import BusError


@pytest.mark.parametrize(
    "reply",
    [
        "$JS.ACK.TIDE_HIDDEN.trainers.2.17.5.1700000000500000000.3",
        "$JS.ACK.hub.ACCHASH.TIDE_HIDDEN.trainers.2.17.5.1700000000500000000.3.rnd",
    ],
)
def test_parses(reply: str) -> None:
    """Both forms of ADR-15 give the same five values."""
    assert parse_ack_subject(reply) == AckInfo(2, 17, 5, 1700000000.5, 3)


@pytest.mark.parametrize("reply", ["", "a.b", "$JS.ACK.S.C.x.1.2.3.4"])
def test_anything_else_is_one_error(reply: str) -> None:
    """Not a traceback of the parser."""
    with pytest.raises(BusError, match="not an acknowledgement subject"):
        parse_ack_subject(reply)

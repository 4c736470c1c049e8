"""Lives of a stream."""

from dataclasses import replace

from tide_daemon.bus.port import StoredMessage
from tide_daemon.roles.continuity import Continuity

FIRST = StoredMessage("s", b"x", 5, 100.0, "2026")


def test_messages_of_one_life() -> None:
    """The first one, the same again from another reader, and later ones."""
    continuity = Continuity()
    assert not any(continuity.broken_by(message) for message in (FIRST, FIRST, replace(FIRST, sequence=9)))


def test_a_stream_that_was_made_anew() -> None:
    """Seen once, whether or not its sequence has reached the old one already."""
    for sequence in (1, 9):
        continuity = Continuity()
        anew = replace(FIRST, sequence=sequence, stored_at=200.0, stream_made="2027")
        assert [continuity.broken_by(message) for message in (FIRST, anew, anew)] == [False, True, False]


def test_a_stream_that_was_set_back() -> None:
    """An older copy of the disk: the same life, and sequences that were there before."""
    for sequence in (4, 5):
        continuity = Continuity()
        assert not continuity.broken_by(FIRST)
        assert continuity.broken_by(replace(FIRST, sequence=sequence, stored_at=200.0))

"""Whether what is followed still is the stream that it was. Pure.

Fencing tokens and generations grow within one life of the broker's streams. A broker that lost its disk, or got back
an older copy of it, begins again below what its nodes remember, and whoever compares has to forget.
"""

from tide_daemon.bus.port import StoredMessage


class Continuity:
    """Of one subject, whichever reader of it comes after another. Changed by `broken_by` only."""

    def __init__(self) -> None:
        self._last: StoredMessage | None = None

    def broken_by(self, message: StoredMessage) -> bool:
        """Take the next message that tail() gave; True if its stream was made anew, or set back, since the one before.

        A new reader may give the newest message once more.
        """
        before, self._last = self._last, message
        if before is None or message == before:
            return False
        return message.stream_made != before.stream_made or message.sequence <= before.sequence

"""Every error that this package raises on purpose, in one tree.

Split by whose fault it is: ours or the operator's (ConfigError), a peer's bytes (WireError),
the broker (BusError), a draft's content (DraftError), the engine process (EngineError), the disk
(StoreError). Messages say what is wrong and what to change; fields carry what a caller acts on.
"""


class TideError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(TideError):
    """The configuration is unusable. The message lists every problem found, one a line."""


class WireError(TideError):
    """Bytes from the bus are not a valid message. The only error that decoding raises."""


class BusError(TideError):
    """The broker refused or could not do something."""


class BusUnavailableError(BusError):
    """No answer from the broker within the time allowed. Retrying later may succeed."""


class BusClosedError(BusError):
    """The connection was closed for good, by us or by the broker."""


class BusConflictError(BusError):
    """A compare-and-set lost: somebody else wrote the subject first.

    Attributes:
        subject: the subject that was to be written.
    """

    def __init__(self, subject: str, message: str = "") -> None:
        super().__init__(message or f"{subject} was written by somebody else in the meantime")
        self.subject = subject


class BusFullError(BusError):
    """A stream that refuses when full is full, or the broker's store is. Purging what is not needed helps."""


class BusSetupError(BusError):
    """The broker is too old, or a stream, limit or permission is not what the topology needs."""


class MessageTooLargeError(BusError):
    """A message is over the broker's limit.

    Attributes:
        num_bytes: size of the message.
        limit_bytes: the largest size that may be published.
    """

    def __init__(self, subject: str, num_bytes: int, limit_bytes: int) -> None:
        super().__init__(f"message of {num_bytes} bytes for {subject} is over the limit of {limit_bytes} bytes")
        self.num_bytes = num_bytes
        self.limit_bytes = limit_bytes


class DraftError(TideError):
    """A draft's checkpoint, delta, vocabulary map or digest is not what its manifest says."""


class EngineError(TideError):
    """The engine process refused a command, answered wrongly, or is gone."""


class EngineRefusedError(EngineError):
    """The engine is there and does not do what it was told. Asking again does not help by itself."""


class StoreError(TideError):
    """The disk: the sample store, a draft or another file of ours cannot be read or written."""

"""What the status endpoint asks of the daemon. It renders what it is told and reaches into nothing."""

from collections.abc import Mapping
from typing import Protocol


class Source(Protocol):
    """A daemon, as seen by its status endpoint. All three are cheap and never block."""

    def snapshot(self) -> Mapping[str, object]:
        """{"daemon": {...}, "bus": {...}, "roles": {name: {"state", "num_failures", "last_error", "snapshot"}}}."""
        ...

    def health(self) -> Mapping[str, str]:
        """Each dependency by name, "server.engine" for example: "ok" or a sentence."""
        ...

    def ready(self) -> bool:
        """Whether every role can do its work."""
        ...

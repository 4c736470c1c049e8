"""Tells the service manager about us: datagrams of NAME=VALUE lines to the socket in $NOTIFY_SOCKET, see sd_notify(3).

Own code, as that page recommends: the protocol is these few lines, and the packages for it are bindings to
libsystemd or no longer kept. What is told and when is in service.py.
"""

import os
import socket
from collections.abc import MutableMapping

_SEND_LIMIT_S = 1.0
"""A service manager that does not read its socket must not stop our loop for longer."""


class Notifier:
    """A socket of the service manager; without one, telling does nothing.

    Args:
        address: path of the socket, "@" in front for an abstract one; "" for none.
        watchdog_s: we are killed unless WATCHDOG=1 comes within this; 0.0 for never.
    """

    def __init__(self, address: str = "", watchdog_s: float = 0.0) -> None:
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self.watchdog_s = watchdog_s

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> "Notifier":
        """As systemd started us. The variables are taken out, so that no child speaks in our name."""
        address = environ.pop("NOTIFY_SOCKET", "")
        usec, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        meant = usec.isdigit() and (not pid or pid == str(os.getpid()))
        return cls(address if address[:1] in ("/", "@") else "", int(usec) / 1e6 if meant else 0.0)

    @property
    def is_heard(self) -> bool:
        """Whether somebody listens."""
        return bool(self._address)

    def tell(self, **fields: str | int) -> bool:
        """Send one message, such as tell(READY=1, STATUS="serving"); False if it did not arrive."""
        if not self._address:
            return False
        message = "\n".join(f"{name}={' '.join(str(value).split())}" for name, value in fields.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(_SEND_LIMIT_S)
                sender.connect(self._address)
                sender.sendall(message.encode())
        except OSError:
            return False
        return True

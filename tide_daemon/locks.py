"""Keeps two daemons from running one role on the same files.

The kernel drops an flock when its process ends, however it ends, so nothing is ever stale.
"""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tide_daemon.errors import TideError


class RoleInUseError(TideError):
    """Another daemon runs this role with the same state directory."""


@contextmanager
def role_locks(state_dir: Path, roles: Sequence[str]) -> Iterator[None]:
    """Hold one lock file per role while inside.

    Raises:
        RoleInUseError: somebody else holds one.
    """
    with ExitStack() as stack:
        for role in roles:
            file = stack.enter_context((state_dir / f"{role}.lock").open("a+"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                holder = file.read(32).strip() or "unknown"
                raise RoleInUseError(
                    f"another daemon (process {holder}) runs the role {role} with {state_dir}; "
                    "stop it, or give this one another node.state_dir"
                ) from None
            # On a full disk the name of the holder is missing, and nothing is left in a buffer that cannot be written.
            with suppress(OSError):
                os.ftruncate(file.fileno(), 0)
                os.write(file.fileno(), f"{os.getpid()}\n".encode())
        yield

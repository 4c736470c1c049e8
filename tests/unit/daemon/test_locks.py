"""Role locks: what counts is the lock, not what stands in its file."""

import os
import resource
from pathlib import Path

import pytest

from tide_daemon.locks import RoleInUseError, role_locks


def test_who_holds_it_is_told(tmp_path: Path) -> None:
    """A second one is refused and names the process; afterwards the lock is free."""
    with role_locks(tmp_path, ("server",)):
        with pytest.raises(RoleInUseError, match=f"process {os.getpid()}\\)"), role_locks(tmp_path, ("server",)):
            pass
        with role_locks(tmp_path, ("trainer",)):
            pass
    with role_locks(tmp_path, ("server",)):
        pass


def test_a_full_disk_keeps_nobody_from_a_lock(tmp_path: Path) -> None:
    """Daemons must start on a full disk: retention is what makes room. A second one is refused all the same."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # nothing can be written, as on a full disk
    try:
        with role_locks(tmp_path, ("server",)):
            with pytest.raises(RoleInUseError, match="process unknown"), role_locks(tmp_path, ("server",)):
                pass
            assert (tmp_path / "server.lock").stat().st_size == 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

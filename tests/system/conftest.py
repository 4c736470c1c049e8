"""One running system for all tests of this folder: starting SGLang takes most of their time."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.system.system import System


@pytest.fixture(scope="session")
def system() -> Iterator[System]:
    """nats-server, SGLang on the CPU and the three roles, each a process, with a draft served."""
    # A path short enough for sockets.
    with TemporaryDirectory(prefix="tide-system-") as folder:
        running = System(Path(folder))
        try:
            running.start()
            yield running
        finally:
            running.stop()

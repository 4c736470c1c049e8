"""One tiny target and one SGLang for all tests of the session: starting it takes most of their time."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import pytest_asyncio

from .server import Server, running, settings_for
from .tiny_target import VOCAB, write_target


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_target(tmp_path_factory.mktemp("target"))


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory with a path short enough for sockets."""
    with TemporaryDirectory(prefix="tide-") as name:
        yield Path(name)


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Forty prompts of 4 to 24 tokens."""
    rng = np.random.default_rng(3)
    return [rng.integers(3, VOCAB, rng.integers(4, 25)).tolist() for _ in range(40)]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server(target: Path) -> AsyncIterator[Server]:
    """A float32 SGLang with chunked prefill; test_capture.py, the first of this folder, finds it at version 0."""
    with TemporaryDirectory(prefix="tide-") as name:
        async with running(settings_for(target, Path(name), "--chunked-prefill-size", "64")) as started:
            yield started

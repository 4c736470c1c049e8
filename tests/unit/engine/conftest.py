"""A small ring and a tap on it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.engine.tap_batches import TOPK, VOCAB, WIDTH
from tide_daemon.engine.port import CaptureSettings
from tide_daemon.engine.ring import RingReader, RingWriter
from tide_daemon.engine.ring_layout import (
    RingLayout,
)
from tide_daemon.engine.sglang.tap import Tap


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[tuple[RingWriter, RingReader]]:
    writer = RingWriter(tmp_path / "t.ring", RingLayout(64, WIDTH, TOPK))
    reader = RingReader(tmp_path / "t.ring")
    yield writer, reader
    reader.close()


@pytest.fixture
def tap(ring: tuple[RingWriter, RingReader]) -> Tap:
    return Tap(ring[0], CaptureSettings(True), VOCAB)

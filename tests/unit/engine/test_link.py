"""What the daemon's end of an engine hands over when it leaves."""

from pathlib import Path

import pytest

from tests.unit.engine.test_assemble import LAYOUT, SPEC, make, span
from tide_daemon.engine.assemble import Assembler
from tide_daemon.engine.ring import RingReader, RingWriter
from tide_daemon.engine.sglang.link import EngineLink, _Rank


@pytest.mark.parametrize("ended", [True, False])
async def test_rows_that_were_taken_are_handed_over_at_the_end(tmp_path: Path, ended: bool) -> None:
    """Rows out of the ring are nowhere else, whether the engine has ended or goes on for the next daemon."""
    writer = RingWriter(tmp_path / "x.ring", LAYOUT)
    link = EngineLink(
        tmp_path, "", SPEC, "n1", codec="bf16", chunk_bytes=1 << 20, chunk_max_age_s=60.0, command_timeout_s=1.0
    )
    rank = link._ranks["ctl-0.sock"] = _Rank(tmp_path / "ctl-0.sock")
    rank.ring, rank.assembler = RingReader(tmp_path / "x.ring"), Assembler(SPEC, "n1", "bf16", max_age_s=60.0)
    writer.write(make(span(1, 0, 3)))
    assert link.take_chunks(1 << 20) == []
    writer.write(make(span(1, 3, 5)))
    if ended:
        link.engine_gone()
    link.close()
    (chunk,) = link.take_chunks(1 << 20)
    assert len(chunk.token_ids) == (5 if ended else 3)
    if not ended:
        with RingReader(tmp_path / "x.ring") as following:
            assert following.waiting() == 2
    writer.close()

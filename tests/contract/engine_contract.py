"""What every engine behind engine/port.py must do. Run on the modelled one and on real SGLang.

A subclass gives `engine` (started, ready) and `serve` (runs some captured requests to their end).
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tide_daemon.engine.port import CaptureSettings, DraftState, Engine
from tide_daemon.errors import EngineError
from tide_daemon.wire import envelope
from tide_daemon.wire.records import HiddenChunk

MAX_BYTES = 256 * 1024


@dataclass
class Subject:
    """An engine under test.

    Attributes:
        serve: runs some requests to their end.
        chunks: everything captured since the last call.
        drafts: two checkpoints that it can run, by directory.
    """

    engine: Engine
    serve: Callable[[], Awaitable[None]]
    chunks: Callable[[], Awaitable[list[HiddenChunk]]]
    drafts: list[tuple[Path, str]]


class EngineContract:
    """The suite. `subject` is a fixture of the subclass."""

    async def test_says_what_it_is(self, subject: Subject) -> None:
        """A ready engine knows its target and counts its starts."""
        stats = await subject.engine.stats()
        assert stats.state == "ready"
        assert stats.engine_starts >= 1
        assert subject.engine.spec is not None

    async def test_chunks_are_whole_requests(self, subject: Subject) -> None:
        """Chunks of a request are consecutive, end once, fit the message and carry a valid record."""
        await subject.chunks()
        await subject.serve()
        chunks = await subject.chunks()
        assert chunks
        requests: dict[str, list[HiddenChunk]] = defaultdict(list)
        for chunk in chunks:
            data = envelope.encode(chunk)
            assert len(data) <= MAX_BYTES
            assert envelope.decode(data).request_id == chunk.request_id
            assert chunk.spec == subject.engine.spec
            requests[chunk.request_id].append(chunk)
        # Of the others the beginning was taken before: only a first chunk has this number, see engine/assemble.py.
        begun = [parts for parts in requests.values() if parts[0].chunk_index == 2 * parts[0].first_position]
        whole = [parts for parts in begun if parts[-1].last]
        assert whole
        for parts in whole:
            first, position = parts[0].chunk_index, parts[0].first_position
            for index, part in enumerate(parts):
                assert (part.chunk_index, part.first_position) == (first + index, position)
                assert part.last == (index == len(parts) - 1)
                position += len(part.token_ids)
                if not part.last:
                    assert part.next_token_id == parts[index + 1].token_ids[0]

    async def test_swap_is_read_back(self, subject: Subject) -> None:
        """A swap returns, and afterwards reports, the version and digest asked for; rows carry the version."""
        for version, (directory, digest) in enumerate(subject.drafts, start=101):
            state = DraftState(version, digest)
            before = await subject.engine.stats()
            assert await subject.engine.swap(str(directory), state) == state
            after = await subject.engine.stats()
            assert after.draft == state
            assert after.num_swaps == before.num_swaps + 1
        await subject.chunks()
        await subject.serve()
        assert (await subject.chunks())[-1].draft_version == version

    async def test_wrong_digest_is_refused(self, subject: Subject) -> None:
        """A checkpoint that is not what was promised is not applied."""
        (directory, digest), (_, other) = subject.drafts
        await subject.engine.swap(str(directory), DraftState(201, digest))
        with pytest.raises(EngineError):
            await subject.engine.swap(str(directory), DraftState(202, other))
        assert (await subject.engine.stats()).draft == DraftState(201, digest)

    async def test_steps_follow_the_table(self, subject: Subject) -> None:
        """With a draft loaded, steps come from the table, and counts are cumulative and consistent."""
        directory, digest = subject.drafts[0]
        await subject.engine.swap(str(directory), DraftState(301, digest))
        await subject.engine.set_steps([(64, 2)])
        before = {(s.batch_size, s.num_steps): s for s in (await subject.engine.stats()).steps}
        await subject.serve()
        await subject.engine.set_steps([])
        steps = (await subject.engine.stats()).steps
        drafted = [s for s in steps if s.num_steps == 2]
        assert sum(s.num_verifies for s in drafted) > sum(s.num_verifies for k, s in before.items() if k[1] == 2)
        for s in steps:
            assert len(s.accepted_at) == s.num_steps
            assert list(s.accepted_at) == sorted(s.accepted_at, reverse=True)
            assert s.num_tokens == s.num_verifies * s.batch_size + sum(s.accepted_at)
            assert 0 < s.target_s <= s.step_s * 1.001
            assert s.median_step_s > 0
            old = before.get((s.batch_size, s.num_steps))
            assert old is None or (old.num_verifies <= s.num_verifies and old.step_s <= s.step_s)

    async def test_bad_tables_are_refused(self, subject: Subject) -> None:
        """Unordered tables and more steps than the engine has are refused."""
        for table in ([(4, 1), (2, 1)], [(4, 60)]):
            with pytest.raises(EngineError):
                await subject.engine.set_steps(table)

    async def test_collect_off_captures_nothing_new(self, subject: Subject) -> None:
        """With collect off no further row is written; with it on again they flow."""
        await subject.engine.set_capture(CaptureSettings(False))
        await subject.serve()
        await subject.chunks()
        rows = (await subject.engine.stats()).rows_written
        await subject.serve()
        assert (await subject.engine.stats()).rows_written == rows
        assert not (await subject.engine.stats()).collecting
        await subject.engine.set_capture(CaptureSettings(True))
        await subject.serve()
        assert await subject.chunks()

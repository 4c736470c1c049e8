"""Changing the number of steps at random and swapping drafts never changes greedy output."""

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import pytest

from tide_daemon.draft.checkpoint import placeholder, save
from tide_daemon.engine.port import DraftState
from tide_daemon.errors import EngineError

from .server import Server
from .tiny_target import draft_config, write_memorised_draft

pytestmark = [pytest.mark.sglang, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]

NUM_TOKENS = 40


async def test_random_steps_and_swaps_keep_greedy_ids(
    server: Server, target: Path, prompts: list[list[int]], tmp_path: Path
) -> None:
    """40 prompts in float32 get plain decoding's ids while steps change for about every batch, with swaps."""
    await server.engine.set_steps([])
    plain = await server.generate(prompts, NUM_TOKENS)
    sequences = [a + b for a, b in zip(prompts, plain, strict=True)]
    drafts = {}
    for version in (11, 12):
        made = write_memorised_draft(tmp_path / str(version), target, sequences[::2], seed=version)
        drafts[version] = DraftState(version, made.digest)
    await server.engine.swap(str(tmp_path / "11"), drafts[11])
    before = await server.engine.stats()

    chance = random.Random(5)
    stop = asyncio.Event()

    async def disturb() -> int:
        """Random steps all the time, a swap every half second."""
        swaps = 0
        while not stop.is_set():
            for _ in range(25):
                await server.engine.set_steps([(8, chance.randint(0, 5))])
                await asyncio.sleep(0.02)
            version = 12 if swaps % 2 == 0 else 11
            assert await server.engine.swap(str(tmp_path / str(version)), drafts[version]) == drafts[version]
            swaps += 1
        return swaps

    task = asyncio.create_task(disturb())
    disturbed = await server.generate(prompts, NUM_TOKENS)
    stop.set()
    swaps = await task
    assert disturbed == plain
    after = await server.engine.stats()
    assert after.num_swaps - before.num_swaps == swaps >= 3
    used = {s.num_steps for s in after.steps if s.num_verifies > 0}
    assert used == {0, 1, 2, 3, 4, 5}
    drafted = [s for s in after.steps if s.num_steps >= 1]
    assert sum(s.accepted_at[0] for s in drafted) > 100, "some drafts must be accepted, or nothing was tested"
    assert after.problems == ()


async def test_swap_refuses_and_keeps_what_runs(server: Server, target: Path, tmp_path: Path) -> None:
    """A wrong digest or shape, a damaged file, a missing directory change nothing; what runs is read back."""
    made = write_memorised_draft(tmp_path / "good", target, [list(range(3, 60))], seed=1)
    good = DraftState(21, made.digest)
    assert await server.engine.swap(str(tmp_path / "good"), good) == good
    with pytest.raises(EngineError, match="digest"):
        await server.engine.swap(str(tmp_path / "good"), DraftState(22, "0" * 64))
    with pytest.raises(EngineError, match="refused"):
        await server.engine.swap(str(tmp_path / "absent"), DraftState(22, made.digest))
    config = replace(draft_config(target), num_key_value_heads=1)
    other = save(tmp_path / "other", config, placeholder(config).tensors)
    with pytest.raises(EngineError, match="num_key_value_heads 1"):
        await server.engine.swap(str(tmp_path / "other"), DraftState(22, other.digest))
    weights = tmp_path / "good" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(EngineError, match="refused"):
        await server.engine.swap(str(tmp_path / "good"), DraftState(22, made.digest))
    assert (await server.engine.stats()).draft == good


async def test_steps_table_is_checked(server: Server) -> None:
    """Steps that the engine has no state for, and unordered tables, are refused."""
    with pytest.raises(EngineError, match="6"):
        await server.engine.set_steps([(8, 6)])
    with pytest.raises(EngineError, match="ascending"):
        await server.engine.set_steps([(8, 1), (4, 2)])


async def test_no_step_above_the_table(server: Server, prompts: list[list[int]]) -> None:
    """Batches larger than the table's last entry decode plainly."""
    await server.engine.set_steps([(1, 2)])

    async def verifies(batch_above: int) -> int:
        steps = (await server.engine.stats()).steps
        return sum(s.num_verifies for s in steps if s.num_steps > 0 and s.batch_size > batch_above)

    before = await verifies(1)
    await server.generate(prompts[:8], 12)
    assert await verifies(1) == before

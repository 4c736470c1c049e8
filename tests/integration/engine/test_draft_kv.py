"""The draft's KV cache survives phases of plain decoding: made up for later, with the values it would have had."""

import asyncio
from pathlib import Path

import pytest

from tide_daemon.engine.port import DraftState
from tide_daemon.wire.records import StepStats

from .server import Server
from .tiny_target import write_memorised_draft

pytestmark = [pytest.mark.sglang, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

NUM_TOKENS = 160
PLAIN_STEPS = 80


async def drafted(server: Server) -> StepStats:
    """The counts at 3 steps and batch 1 so far."""
    for stats in (await server.engine.stats()).steps:
        if (stats.batch_size, stats.num_steps) == (1, 3):
            return stats
    return StepStats(1, 3, 0, 0, (0, 0, 0), 0.0, 0.0, 0.0)


async def wait_for_plain_steps(server: Server, count: int) -> None:
    """Return after so many further plain steps."""

    async def steps() -> int:
        return sum(s.num_verifies for s in (await server.engine.stats()).steps if s.num_steps == 0)

    until = await steps() + count
    for _ in range(3000):
        if await steps() >= until:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("no plain steps")


async def accept_length(server: Server, prompt: list[int], plain_first: bool) -> tuple[float, list[int]]:
    """Accept length of one request's drafted part, and its ids; with a plain part in front or not."""
    before = await drafted(server)
    await server.engine.set_steps([] if plain_first else [(8, 3)])
    # A key of its own: cached prefixes hold draft KV of earlier tests' drafts.
    key = f"draft-kv-{plain_first}"
    task = asyncio.create_task(server.generate([prompt], NUM_TOKENS, cache_key=key))
    if plain_first:
        await wait_for_plain_steps(server, PLAIN_STEPS)
        await server.engine.set_steps([(8, 3)])
    (ids,) = await task
    after = await drafted(server)
    verifies = after.num_verifies - before.num_verifies
    assert verifies > 10
    return (after.num_tokens - before.num_tokens) / verifies, ids


async def test_speculation_resumes_with_a_whole_context(
    server: Server, target: Path, prompts: list[list[int]], tmp_path: Path
) -> None:
    """A request that decoded plainly for a while drafts as well as one that never did, and its output is the same."""
    prompt = prompts[20]
    await server.engine.set_steps([])
    (plain,) = await server.generate([prompt], NUM_TOKENS)
    made = write_memorised_draft(tmp_path / "d", target, [prompt + plain], seed=9, attends=True)
    await server.engine.swap(str(tmp_path / "d"), DraftState(501, made.digest))
    always, ids = await accept_length(server, prompt, plain_first=False)
    assert ids == plain
    later, ids = await accept_length(server, prompt, plain_first=True)
    assert ids == plain
    assert always > 1.5
    assert later == pytest.approx(always, rel=0.05)
    assert (await server.engine.stats()).problems == ()

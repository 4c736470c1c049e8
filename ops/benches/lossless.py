"""How often greedy output is plain decoding's, token for token, while steps change at random and drafts are swapped.

One SGLang with our plug-in, SmolLM2-135M, 40 held-out HumanEval prompts, 8 at a time, first plainly, then with
0 to 5 steps drawn anew every 20 ms and a swap between two learnt drafts every half second. In float32 all must be
equal. In bf16 a step over several rows rounds differently from a step over one, so near ties fall
differently; how much of that is speculation's doing shows against `equal_bf16_plain`: plain decoding of the same
prompts one at a time, against plain decoding 8 at a time.
"""

import asyncio
import random
import sys
from pathlib import Path

import numpy as np
from demo_run.stack import AUX_LAYERS

from benches.code_draft import held_out_prompts, write_drafts
from benches.serving import COMMAND_TIMEOUT_S, BenchServer, Reply, ours, plugged, swap_in, target_of
from benches.settings import Settings
from tide_daemon.draft.checkpoint import Checkpoint
from tide_daemon.engine.control import ControlClient
from tide_daemon.engine.sglang.merge import parse_steps

BATCH = 8
MAX_STEPS = 5


def run(settings: Settings) -> dict[str, float]:
    return asyncio.run(_run(settings))


async def _run(settings: Settings) -> dict[str, float]:
    target, _ = target_of(settings)
    num_tokens = settings.integer("tokens", 96)
    prompts = held_out_prompts(target)
    drafts = write_drafts(target, settings.work_dir, 2)
    figures: dict[str, float] = {}
    for name, dtype in (("float32", "float32"), ("bf16", "bfloat16")):
        server, control = await _start(target, settings.work_dir / name, dtype)
        try:
            plain = await server.answers(prompts, num_tokens, BATCH)
            await server.flush_cache()
            disturbed, accept_length, num_swaps = await _disturbed(server, control, drafts, prompts, num_tokens)
            figures[f"equal_{name}"] = _share_equal(plain, disturbed)
            figures[f"accept_{name}"] = accept_length
            figures[f"swaps_{name}"] = float(num_swaps)
            if name == "bf16":
                figures["median_first_difference_bf16"] = _median_first_difference(plain, disturbed)
                await server.flush_cache()
                alone = await server.answers(prompts, num_tokens, 1)
                figures["equal_bf16_plain"] = _share_equal(plain, alone)
        finally:
            await server.stop()
        print(f"{name}: {figures[f'equal_{name}']:.3f} of {len(prompts)} equal", file=sys.stderr)
    return figures


async def _start(target: Path, folder: Path, dtype: str) -> tuple[BenchServer, ControlClient]:
    config = ours(target, folder, "--dtype", dtype, max_steps=MAX_STEPS)
    server, control = await plugged(config, tuple(AUX_LAYERS))
    await control.call("set_steps", COMMAND_TIMEOUT_S, table=[])
    return server, control


async def _disturbed(
    server: BenchServer,
    control: ControlClient,
    drafts: list[tuple[Path, Checkpoint]],
    prompts: list[list[int]],
    num_tokens: int,
) -> tuple[list[Reply], float, int]:
    """Answers under random steps and swaps, the accept length of steps that drafted, and how many swaps there were."""

    async def swap(version: int) -> None:
        folder, held = drafts[version % 2]
        await swap_in(control, folder, version, held.digest)

    await swap(1)
    chance, done = random.Random(0), asyncio.Event()

    async def disturb() -> int:
        version = 1
        while not done.is_set():
            for _ in range(25):
                await control.call("set_steps", COMMAND_TIMEOUT_S, table=[[BATCH, chance.randint(0, MAX_STEPS)]])
                await asyncio.sleep(0.02)
            version += 1
            await swap(version)
        return version - 1

    task = asyncio.create_task(disturb())
    answers = await server.answers(prompts, num_tokens, BATCH)
    done.set()
    num_swaps = await task
    await control.call("set_steps", COMMAND_TIMEOUT_S, table=[])
    stats = await control.call("stats", COMMAND_TIMEOUT_S)
    if stats["problems"]:
        raise RuntimeError(f"the plug-in has problems: {stats['problems']}")
    drafted = [step for step in parse_steps(stats["steps"]) if step.num_steps > 0]
    rows = sum(step.num_verifies * step.batch_size for step in drafted)
    return answers, sum(step.num_tokens for step in drafted) / rows, num_swaps


def _share_equal(one: list[Reply], other: list[Reply]) -> float:
    return sum(a.ids == b.ids for a, b in zip(one, other, strict=True)) / len(one)


def _median_first_difference(one: list[Reply], other: list[Reply]) -> float:
    """Median index of the first different token among answers that differ; NaN when none does."""
    indices = [
        next(i for i, (x, y) in enumerate(zip(a.ids, b.ids, strict=True)) if x != y)
        for a, b in zip(one, other, strict=True)
        if a.ids != b.ids
    ]
    return float(np.median(indices)) if indices else float("nan")

"""A draft of ours in an SGLang that knows nothing of us: is it accepted as often as under our plug-in?

The same held-out prompts, one at a time, greedy, 3 draft steps: once with our plug-in, once by SGLang's own
flags alone. `--set draft=DIR` takes a folder that `tide-daemon export` wrote; else a draft is trained for it.
`accept_ratio` is SGLang's accept length alone over that under the plug-in.
"""

import asyncio
from pathlib import Path

from demo_run.stack import AUX_LAYERS

from benches.code_draft import draft_of, held_out_prompts
from benches.serving import COMMAND_TIMEOUT_S, Reply, ours, plugged, swap_in, target_of, without_plugin
from benches.settings import Settings
from tide_daemon.draft import checkpoint

NUM_STEPS = 3


def run(settings: Settings) -> dict[str, float]:
    return asyncio.run(_run(settings))


async def _run(settings: Settings) -> dict[str, float]:
    target, _ = target_of(settings)
    num_tokens = settings.integer("tokens", 96)
    prompts = held_out_prompts(target)
    draft = draft_of(settings, target)
    alone = without_plugin(
        target, settings.work_dir / "stock", "stock",
        "--speculative-algorithm", "EAGLE3", "--speculative-draft-model-path", str(draft),
        "--speculative-num-steps", str(NUM_STEPS), "--speculative-eagle-topk", "1",
        "--speculative-num-draft-tokens", str(NUM_STEPS + 1),
    )  # fmt: skip
    try:
        await alone.ready()
        stock = await alone.answers(prompts, num_tokens, 1)
    finally:
        await alone.stop()
    tide = await _under_plugin(target, settings.work_dir / "ours", draft, prompts, num_tokens)
    figures = {"accept_stock": _accept_length(stock), "accept_tide": _accept_length(tide)}
    figures["accept_ratio"] = figures["accept_stock"] / figures["accept_tide"]
    figures["equal"] = sum(a.ids == b.ids for a, b in zip(stock, tide, strict=True)) / len(prompts)
    return figures


async def _under_plugin(
    target: Path, folder: Path, draft: Path, prompts: list[list[int]], num_tokens: int
) -> list[Reply]:
    server, control = await plugged(ours(target, folder), tuple(AUX_LAYERS))
    try:
        digest = checkpoint.load(draft).digest
        await swap_in(control, draft, 1, digest)
        await control.call("set_steps", COMMAND_TIMEOUT_S, table=[[64, NUM_STEPS]])
        return await server.answers(prompts, num_tokens, 1)
    finally:
        await server.stop()


def _accept_length(replies: list[Reply]) -> float:
    """Tokens a verify step; the first token of each answer comes from its prefill."""
    return sum(len(reply.ids) - 1 for reply in replies) / sum(reply.num_verifies for reply in replies)

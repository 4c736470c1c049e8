"""Requests with a temperature keep the target's distribution while drafts are verified."""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from tide_daemon.engine.port import DraftState

from .server import Server
from .tiny_target import write_memorised_draft

pytestmark = [pytest.mark.sglang, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

NUM_TOKENS = 8
TEMPERATURE = 1.2
MAX_Z = 5.0


def sampled(server: Server, prompts: list[list[int]]) -> list[list[int]]:
    """Ids of each prompt at a temperature, eight requests at a time, a greedy one among them."""
    params = {"max_new_tokens": NUM_TOKENS, "temperature": TEMPERATURE, "ignore_eos": True}

    def one(ids: list[int]) -> list[int]:
        return list(server.post("/generate", {"input_ids": ids, "sampling_params": params})["output_ids"])

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(one, prompts))


def argmax_deviation(target: Path, prompts: list[list[int]], outputs: list[list[int]]) -> tuple[float, float]:
    """How far the number of tokens that are the target's argmax is from its expectation.

    The first token of each output is left out: the prefill samples it.

    Returns:
        The deviation in standard deviations, and the expected share of argmax tokens.
    """
    model = LlamaForCausalLM.from_pretrained(target, dtype=torch.float32)
    seen = expected = variance = total = 0.0
    with torch.inference_mode():
        for prompt, output in zip(prompts, outputs, strict=True):
            logits = model(torch.tensor([prompt + output])).logits[0, len(prompt) : -1]
            best, token = torch.softmax(logits / TEMPERATURE, dim=-1).max(dim=-1)
            seen += float((token == torch.tensor(output[1:])).sum())
            expected += float(best.sum())
            variance += float((best * (1 - best)).sum())
            total += len(output) - 1
    return (seen - expected) / math.sqrt(variance), expected / total


@pytest.mark.parametrize("num_steps", [0, 3])
async def test_a_temperature_samples_from_the_target(
    server: Server, target: Path, prompts: list[list[int]], tmp_path: Path, num_steps: int
) -> None:
    """With and without drafts, the target's likeliest token comes as often as it should, and no oftener."""
    await server.engine.set_steps([])
    plain = await server.generate(prompts, NUM_TOKENS)
    made = write_memorised_draft(tmp_path / "draft", target, [a + b for a, b in zip(prompts, plain, strict=True)], 3)
    await server.engine.swap(str(tmp_path / "draft"), DraftState(31, made.digest))
    await server.engine.set_steps([(8, num_steps)])
    repeated = prompts * 8
    outputs = sampled(server, repeated)
    deviation, expected_share = argmax_deviation(target, repeated, outputs)
    assert 0.02 < expected_share < 0.9, "the target must be neither flat nor certain, or nothing is tested"
    assert abs(deviation) < MAX_Z


async def test_greedy_requests_beside_sampled_ones_stay_greedy(server: Server, prompts: list[list[int]]) -> None:
    """A batch of both kinds: temperature 0 still gives plain decoding's ids."""
    await server.engine.set_steps([])
    plain = await server.generate(prompts[:8], NUM_TOKENS)
    await server.engine.set_steps([(8, 3)])

    def one(number: int) -> list[int]:
        params = {"max_new_tokens": NUM_TOKENS, "temperature": number % 2, "ignore_eos": True}
        body = {"input_ids": prompts[number // 2], "sampling_params": params}
        return list(server.post("/generate", body)["output_ids"])

    with ThreadPoolExecutor(8) as pool:
        outputs = list(pool.map(one, range(16)))
    assert outputs[::2] == plain

"""What the tap captures from real SGLang equals transformers' hidden states, in every mode of serving."""

import asyncio
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from tide_daemon.engine.port import CaptureSettings, DraftState
from tide_daemon.wire.records import HiddenChunk
from tide_daemon.wire.tensors import bf16_to_float32

from .server import Server
from .tiny_target import hidden_states, write_memorised_draft

pytestmark = [pytest.mark.sglang, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

BF16_STEP = 2.0**-7
NUM_TOKENS = 20


@pytest.fixture(scope="module")
def model(target: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(target, dtype=torch.float32).eval()


def assert_bf16_of(found: np.ndarray, wanted: np.ndarray) -> None:
    """`found` is `wanted` rounded to bf16: the same bits, but one step off where float32 noise crosses a tie."""
    rounded = torch.from_numpy(wanted).to(torch.bfloat16).float().numpy()
    assert np.mean(found == rounded) > 0.99
    assert (np.abs(found - wanted) <= BF16_STEP * np.abs(wanted) + 1e-3).all()


def by_request(chunks: list[HiddenChunk]) -> dict[str, list[HiddenChunk]]:
    grouped = defaultdict(list)
    for chunk in chunks:
        grouped[chunk.request_id].append(chunk)
    return grouped


def assert_rows_equal_reference(
    chunks: list[HiddenChunk], model: LlamaForCausalLM, sequences: list[list[int]], prompt_lengths: list[int]
) -> list[int]:
    """Check every row of every request; returns the first positions."""
    requests = by_request(chunks)
    assert len(requests) == len(sequences)
    left = dict(enumerate(sequences))
    firsts = []
    for parts in requests.values():
        assert [part.chunk_index - parts[0].chunk_index for part in parts] == list(range(len(parts)))
        assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
        first = parts[0].first_position
        firsts.append(first)
        tokens = np.concatenate([part.token_ids for part in parts]).tolist()
        # The last token has no state: it was never fed.
        which = next(i for i, ids in left.items() if ids[first:-1] == tokens)
        ids = left.pop(which)
        assert parts[-1].next_token_id == ids[-1]
        mask = np.concatenate([part.loss_mask for part in parts])
        assert mask.tolist() == [int(p >= prompt_lengths[which]) for p in range(first, len(ids) - 1)]
        aux, logprobs = hidden_states(model, ids)
        found = bf16_to_float32(np.concatenate([part.aux for part in parts]))
        wanted = aux[first : len(ids) - 1]
        assert_bf16_of(found, wanted)
        top = np.concatenate([part.topk_ids for part in parts])
        values = np.concatenate([part.topk_logprobs for part in parts])
        generated = mask.astype(bool)
        assert (top[generated] >= 0).all()
        rows = np.flatnonzero(top[:, 0] >= 0)
        reference = np.take_along_axis(logprobs[rows + first], top[rows], axis=1)
        assert np.abs(reference - values[rows]).max() < 0.02
        assert (np.diff(values[rows].astype(np.float32), axis=1) <= 0).all()
        assert (top[rows, 0] == logprobs[rows + first].argmax(1)).all()
    return firsts


async def test_prefill_decode_speculation_prefix_cache_and_chunked_prefill(
    server: Server, model: LlamaForCausalLM, target: Path, prompts: list[list[int]], tmp_path: Path
) -> None:
    """Rows are right without a draft, with one, with cached prefixes (absent) and in chunked prefill."""
    few = prompts[:8]
    long = [(prompts[8] * 40)[:200]]
    lengths = [len(ids) for ids in few]

    plain = await server.generate(few, NUM_TOKENS)
    sequences = [a + b for a, b in zip(few, plain, strict=True)]
    firsts = assert_rows_equal_reference(await server.chunks(), model, sequences, lengths)
    assert firsts == [0] * 8

    long_out = await server.generate(long, NUM_TOKENS)
    long_sequence = [long[0] + long_out[0]]
    assert assert_rows_equal_reference(await server.chunks(), model, long_sequence, [200]) == [0]

    again = await server.generate(few, NUM_TOKENS)
    assert again == plain
    firsts = assert_rows_equal_reference(await server.chunks(), model, sequences, lengths)
    assert all(first > 0 for first in firsts)

    draft = write_memorised_draft(tmp_path / "draft", target, sequences + long_sequence)
    state = DraftState(1, draft.digest)
    assert await server.engine.swap(str(tmp_path / "draft"), state) == state
    await server.engine.set_steps([(8, 3)])
    assert await server.generate(few, NUM_TOKENS) == plain
    chunks = await server.chunks()
    assert_rows_equal_reference(chunks, model, sequences, lengths)
    assert {chunk.draft_version for chunk in chunks} == {1}
    steps = [s for s in (await server.engine.stats()).steps if s.num_steps == 3]
    accept_length = sum(s.num_tokens for s in steps) / sum(s.num_verifies * s.batch_size for s in steps)
    assert accept_length > 1.3, "the test draft must be accepted, or nothing was tested"

    assert await server.generate(long, NUM_TOKENS) == long_out
    assert_rows_equal_reference(await server.chunks(), model, long_sequence, [200])


async def test_opted_out_request_leaves_nothing(server: Server, prompts: list[list[int]]) -> None:
    """A request whose client said so writes no row; others in the same batch do."""
    before = await server.engine.stats()
    await asyncio.gather(
        server.generate(prompts[10:12], 8, custom={"tide": "off"}),
        server.generate(prompts[12:14], 8, custom={"tide_workload": "code"}),
    )
    chunks = await server.chunks()
    after = await server.engine.stats()
    assert after.requests_opted_out - before.requests_opted_out == 2
    assert len(by_request(chunks)) == 2
    assert {chunk.workload for chunk in chunks} == {"code"}
    rows = sum(len(chunk.token_ids) for chunk in chunks)
    assert after.rows_written - before.rows_written == rows


async def test_openai_endpoint_carries_the_wishes(server: Server) -> None:
    """Chat and completions hand `custom_params` through to the tap."""
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "w5 w6 w7"}], "max_tokens": 4}
    complete = {"model": "tiny", "prompt": "w5 w6 w7 w8", "max_tokens": 4}
    for path, body in (("/v1/chat/completions", chat), ("/v1/completions", complete)):
        await server.chunks()
        await asyncio.to_thread(server.post, path, body | {"custom_params": {"tide": "off"}})
        assert await server.chunks() == []
        await asyncio.to_thread(server.post, path, body | {"custom_params": {"tide_workload": "chat"}})
        assert {chunk.workload for chunk in await server.chunks()} == {"chat"}


async def test_window_and_collect_switch(server: Server, prompts: list[list[int]]) -> None:
    """`max_rows` ends a request's capture early; collect off writes nothing."""
    await server.engine.set_capture(CaptureSettings(True, 1.0, 5))
    await server.generate(prompts[14:15], 16)
    chunks = await server.chunks()
    assert sum(len(chunk.token_ids) for chunk in chunks) == 5
    assert chunks[-1].last
    await server.engine.set_capture(CaptureSettings(False))
    await server.generate(prompts[15:16], 8)
    assert await server.chunks() == []
    await server.engine.set_capture(CaptureSettings(True))


async def test_penalised_requests_have_no_top_k(server: Server, prompts: list[list[int]]) -> None:
    """Penalties change the logits in place, so their rows come without log-probabilities."""
    params = {"max_new_tokens": 6, "temperature": 0, "frequency_penalty": 0.5, "ignore_eos": True}
    body = {"input_ids": prompts[16], "sampling_params": params}
    await asyncio.to_thread(server.post, "/generate", body)
    for chunk in await server.chunks():
        assert (chunk.topk_ids[1:] == -1).all()

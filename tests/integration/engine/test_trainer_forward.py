"""The trainer's draft is the engine's draft: what the trainer's maths predicts, a real SGLang does, step for step."""

import asyncio
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from tide_daemon.draft.checkpoint import Checkpoint
from tide_daemon.engine.port import DraftState
from tide_daemon.trainer.batch import pack
from tide_daemon.trainer.compute import choose
from tide_daemon.trainer.frozen import load_frozen
from tide_daemon.trainer.sample import Sample
from tide_daemon.trainer.session import TrainSession, draft_of
from tide_daemon.trainer.settings import TrainerSettings
from tide_daemon.trainer.unroll import unroll
from tide_daemon.wire.records import StepStats, TargetSpec

from .server import Server
from .tiny_target import AUX_LAYERS, DRAFT_VOCAB, HIDDEN, VOCAB, hidden_states

pytestmark = [pytest.mark.sglang, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]

NUM_STEPS = 3
NUM_TOKENS = 48
SPEC = TargetSpec("tiny", "ab" * 32, "cd" * 32, AUX_LAYERS, HIDDEN, VOCAB)


def sample_of(model: LlamaForCausalLM, prompt: list[int], answer: list[int]) -> tuple[Sample, torch.Tensor]:
    """A request as captured, and its aux states before they were rounded to bf16."""
    ids = prompt + answer
    aux = torch.from_numpy(hidden_states(model, ids)[0][:-1])
    rows = len(ids) - 1
    bits = aux.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    sample = Sample(
        request_id=f"{len(prompt):032x}",
        workload="",
        first_position=0,
        token_ids=np.array(ids[:-1], dtype=np.int32),
        loss_mask=(np.arange(rows) >= len(prompt)).astype(np.uint8),
        topk_ids=np.zeros((rows, 0), dtype=np.int32),
        topk_logprobs=np.zeros((rows, 0), dtype=np.float16),
        aux=bits,
        next_token_id=ids[-1],
    )
    return sample, aux


def train(
    target: Path, embed: torch.Tensor, captured: Sequence[tuple[Sample, torch.Tensor]], directory: Path
) -> tuple[Checkpoint, list[list[int]]]:
    """A draft, and the accept lengths predicted for each request.

    It is trained until every accept length from 1 to NUM_STEPS + 1 is predicted somewhere: the comparison would mean
    little if nothing, or everything, were accepted. How many passes that takes depends on the processor's rounding.
    """
    settings = TrainerSettings(name="t", model="tiny", draft_vocab_size=DRAFT_VOCAB)
    samples = [sample for sample, _ in captured]
    counts = np.bincount(np.concatenate([s.token_ids for s in samples]), minlength=VOCAB).astype(np.float64)
    session = TrainSession.fresh(SPEC, counts, samples, load_frozen(target, choose("cpu")), settings)
    for _ in range(12):
        for _ in range(14):
            session.step(samples)
        held = session.save(directory)
        walks = [expected_verifies(held, embed, sample, aux) for sample, aux in captured]
        if {length for walk in walks for length in walk} == set(range(1, NUM_STEPS + 2)):
            return held, walks
    raise AssertionError("the draft does not learn to be accepted")


@torch.no_grad()
def expected_verifies(held: Checkpoint, embed: torch.Tensor, sample: Sample, aux: torch.Tensor) -> list[int]:
    """Accept lengths that the trainer's forward, in float32, predicts for the steps of one request."""
    draft = draft_of(held)
    batch = dataclasses.replace(pack([sample], NUM_STEPS), aux=aux)
    ids = held.vocab_map.target_ids
    right = torch.stack(
        [
            ids[draft.logits(states.hidden).argmax(-1)] == batch.tokens[:, step + 1]
            for step, states in enumerate(unroll(draft, embed, batch, NUM_STEPS))
        ],
        dim=1,
    )
    lengths = 1 + right.long().cumprod(1).sum(1)
    row = int((sample.loss_mask == 0).sum()) - 1
    walked: list[int] = []
    while 1 + sum(walked) < NUM_TOKENS:
        walked.append(int(lengths[row]))
        row += walked[-1]
    return walked


async def drafted(server: Server) -> StepStats:
    """What was counted of single requests that drafted. The last step is counted a moment after its answer arrives."""

    async def counted() -> StepStats:
        for stats in (await server.engine.stats()).steps:
            if (stats.batch_size, stats.num_steps) == (1, NUM_STEPS):
                return stats
        return StepStats(1, NUM_STEPS, 0, 0, (0,) * NUM_STEPS, 0.0, 0.0, 0.0)

    before, now = None, await counted()
    while now != before:
        await asyncio.sleep(0.2)
        before, now = now, await counted()
    return now


async def test_every_request_takes_the_verify_steps_that_the_trainer_predicts(
    server: Server, target: Path, prompts: list[list[int]], tmp_path: Path
) -> None:
    """A checkpoint from the trainer, served as it is, is accepted exactly where the trainer's forward says."""
    model = LlamaForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    chosen = prompts[:10]
    await server.engine.set_steps([])
    # A few tokens more than will be compared: the last chains need their answers.
    answers = await server.generate(chosen, NUM_TOKENS + NUM_STEPS)
    captured = [sample_of(model, prompt, answer) for prompt, answer in zip(chosen, answers, strict=True)]
    embed = load_file(target / "model.safetensors")["model.embed_tokens.weight"].float()
    held, walks = train(target, embed, captured, tmp_path / "d")
    await server.engine.swap(str(tmp_path / "d"), DraftState(901, held.digest))
    await server.engine.set_steps([(8, NUM_STEPS)])
    for prompt, answer, walk in zip(chosen, answers, walks, strict=True):
        before = await drafted(server)
        (ids,) = await server.generate([prompt], NUM_TOKENS)
        after = await drafted(server)
        assert ids == answer[:NUM_TOKENS]
        assert after.num_verifies - before.num_verifies == len(walk)

"""Where drafts are trained: the choice, and that everything goes there."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.trainer_samples import SPEC, chunks, write_target
from tests.unit.trainer.pretend_device import DEVICE, PretendDevice
from tests.unit.trainer.test_revise_vocabulary import SETTINGS, counts_of
from tide_daemon.errors import StoreError
from tide_daemon.trainer import compute
from tide_daemon.trainer.compute import Compute, choose, told_of_memory
from tide_daemon.trainer.evaluate import SampleScore
from tide_daemon.trainer.frozen import load_frozen
from tide_daemon.trainer.jobs import score_draft
from tide_daemon.trainer.join import join, pieces
from tide_daemon.trainer.session import TrainSession

HERE = Compute(torch.device("cpu"), torch.float32)
THERE = Compute(DEVICE, torch.float32)
SAMPLES = pieces([sample for n in range(8) for sample in join(chunks(n), Counter())], 512, 128)


def life(folder: Path, where: Compute) -> tuple[list[float], list[SampleScore], torch.Tensor]:
    """Losses, scores and head of a draft through all that a trainer does with one."""
    frozen = load_frozen(write_target(folder / "target"), where)
    session = TrainSession.fresh(SPEC, counts_of(0, 64), SAMPLES, frozen, SETTINGS)
    losses = [session.step(SAMPLES) for _ in range(3)]
    assert session.revise_vocabulary(counts_of(16, 80), frozen) == 15
    losses += [session.step(SAMPLES) for _ in range(3)]
    session.save_state(folder / "state", 6)
    again, _ = TrainSession.load_state(folder / "state", frozen, SETTINGS)
    losses.append(again.step(SAMPLES))
    held = again.save(folder / "draft")
    on_top = TrainSession.from_checkpoint(held, frozen, SETTINGS)
    losses.append(on_top.step(SAMPLES))
    assert all(loss is not None for loss in losses)
    return [loss or 0.0 for loss in losses], score_draft(held, frozen, SAMPLES, 3), held.tensors["lm_head.weight"]


def test_a_draft_lives_on_another_device(tmp_path: Path) -> None:
    """Training, a new vocabulary, a checkpoint of the state, the draft and its scores are the host's."""
    losses, scores, head = life(tmp_path / "here", HERE)
    with PretendDevice():
        losses_there, scores_there, head_there = life(tmp_path / "there", THERE)
    assert losses_there == pytest.approx(losses, rel=1e-4)
    assert losses[-1] < losses[0]
    assert sum(score.num_tokens for score in scores_there) == pytest.approx(sum(s.num_tokens for s in scores), abs=4)
    assert head_there.device.type == "cpu"
    assert torch.allclose(head_there.float(), head.float(), atol=1e-2)


def test_the_pretended_device_refuses_a_forgotten_tensor() -> None:
    """The test above could not fail otherwise."""
    with PretendDevice():
        there, here = torch.ones(3, device=DEVICE), torch.ones(3)
        assert float((there + there).sum()) == 6.0
        assert (there + here.to(DEVICE)).cpu().tolist() == [2.0, 2.0, 2.0]
        with pytest.raises(RuntimeError, match="on the host and another on the device"):
            there + here
        with pytest.raises(RuntimeError, match="on the host and another on the device"):
            there[torch.tensor([0, 1])] = here[:2]


@pytest.mark.parametrize(
    ("device", "gpu", "bf16", "chosen"),
    [
        ("auto", True, False, ("cuda", torch.bfloat16)),
        ("cuda", True, False, ("cuda", torch.bfloat16)),
        ("cpu", True, True, ("cpu", torch.bfloat16)),
        ("auto", False, True, ("cpu", torch.bfloat16)),
        ("auto", False, False, ("cpu", torch.float32)),
    ],
)
def test_choice(
    monkeypatch: pytest.MonkeyPatch, device: str, gpu: bool, bf16: bool, chosen: tuple[str, torch.dtype]
) -> None:
    """A GPU where there is one and nobody said otherwise; on a CPU the dtype that it multiplies fast."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(compute, "_multiplies_bf16", lambda: bf16)
    found = choose(device)
    assert (found.device.type, found.dtype) == chosen


def test_memory_that_is_used_up() -> None:
    """Said with what to do, as every other refusal of a round."""
    with pytest.raises(StoreError, match="the GPU's memory is used up: lower"), told_of_memory():
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said with what to do."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(StoreError, match="torch finds no GPU: install torch's build"):
        choose("cuda")

import pytest
import torch

from tests.unit.trainer.maths import DRAFT_VOCAB, HIDDEN, VOCAB, sample
from tide_daemon.draft.vocab import map_from_ids
from tide_daemon.trainer import loss as loss_module
from tide_daemon.trainer.batch import pack
from tide_daemon.trainer.loss import cross_entropy_reference, head_cross_entropy
from tide_daemon.trainer.targets import Targets

DRAFT_IDS = map_from_ids(torch.arange(0, 2 * DRAFT_VOCAB, 2), VOCAB).draft_ids()


@pytest.mark.parametrize("rows", [1, 5, 13])
def test_fused_loss_and_gradients_equal_the_reference(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunked head, softmax and hand-written gradient give what autograd gives for the definition."""
    monkeypatch.setattr(loss_module, "CHUNK_ROWS", 4)
    generator = torch.Generator().manual_seed(rows)
    states = torch.randn(rows, HIDDEN, generator=generator, requires_grad=True)
    head = torch.randn(DRAFT_VOCAB, HIDDEN, generator=generator, requires_grad=True)
    q = torch.rand(rows, DRAFT_VOCAB, generator=generator).softmax(-1)
    weights = torch.rand(rows, generator=generator)
    weights[0] = 0.0
    fused = head_cross_entropy(states, head, lambda part: q[part], weights)
    grads = torch.autograd.grad(fused.loss * 1.7, (states, head))
    reference = cross_entropy_reference(states, head, q, weights)
    expected = torch.autograd.grad(reference * 1.7, (states, head))
    torch.testing.assert_close(fused.loss, reference)
    for got, wanted in zip(grads, expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)
    assert fused.weight == pytest.approx(float(weights.sum()))


def test_frozen_head_gets_no_gradient() -> None:
    """A head that does not require a gradient costs none."""
    states = torch.randn(3, HIDDEN, requires_grad=True)
    head = torch.randn(DRAFT_VOCAB, HIDDEN)
    q = torch.full((3, DRAFT_VOCAB), 1 / DRAFT_VOCAB)
    head_cross_entropy(states, head, lambda part: q[part], torch.ones(3)).loss.backward()
    assert states.grad is not None
    assert head.grad is None


def test_topk_is_restricted_to_the_draft_vocabulary_and_renormalised() -> None:
    """Odd tokens are not in the map; what is left of the top-k sums to one."""
    batch = pack([sample(1, 8, 2)], 3)
    targets = Targets(DRAFT_IDS, DRAFT_VOCAB)
    rows = torch.arange(2, 5)
    q, usable = targets.distribution(batch, rows, 1)
    for i, row in enumerate(rows.tolist()):
        inside = {
            int(DRAFT_IDS[t]): float(torch.tensor(lp).exp())
            for t, lp in zip(batch.topk_ids[row + 2].tolist(), batch.topk_logprobs[row + 2].tolist(), strict=True)
            if DRAFT_IDS[t] >= 0
        }
        if not inside:
            continue
        assert usable[i]
        assert float(q[i].sum()) == pytest.approx(1.0, abs=1e-5)
        for column, prob in inside.items():
            assert float(q[i, column]) == pytest.approx(prob / sum(inside.values()), abs=1e-4)


def test_token_itself_is_the_target_where_no_distribution_is_known() -> None:
    """Prompt rows carry no top-k; a label in the vocabulary becomes a hard target, another is unusable."""
    batch = pack([sample(1, 10, 9)], 3)
    q, usable = Targets(DRAFT_IDS, DRAFT_VOCAB).distribution(batch, torch.arange(5), 0)
    for row in range(5):
        label = int(DRAFT_IDS[batch.tokens[row, 1]])
        assert usable[row] == (label >= 0)
        assert float(q[row].sum()) == (1.0 if label >= 0 else 0.0)
        if label >= 0:
            assert q[row, label] == 1.0


def test_last_known_token_is_a_hard_target() -> None:
    """The row after the end of a sample is not there; its token, known from next_token_id, still teaches."""
    given = sample(1, 6, 1)
    batch = pack([given], 3)
    q, usable = Targets(DRAFT_IDS, DRAFT_VOCAB).distribution(batch, torch.tensor([4]), 0)
    label = int(DRAFT_IDS[given.next_token_id])
    assert bool(usable[0]) == (label >= 0)
    assert float(q.sum()) == (1.0 if label >= 0 else 0.0)

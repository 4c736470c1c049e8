import pytest
import torch

from tests.unit.trainer.maths import embeddings, random_draft, sample, serve_chain
from tide_daemon.trainer.batch import pack
from tide_daemon.trainer.sample import Sample
from tide_daemon.trainer.unroll import unroll

STEPS = 3


def following(given: Sample) -> list[int]:
    return [*given.token_ids[1:].tolist(), given.next_token_id, 0, 0, 0]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_every_row_and_step_equals_the_chain_that_serving_runs(kv_heads: int) -> None:
    """Packed, all starts at once: the states are those of an engine's chain with a growing KV cache."""
    draft, embed = random_draft(num_key_value_heads=kv_heads), embeddings()
    samples = [sample(1, 9, 3), sample(2, 5, 1, first_position=40), sample(3, 1, 0)]
    with torch.no_grad():
        steps = list(unroll(draft, embed, pack(samples, STEPS), STEPS))
        first = 0
        for given in samples:
            for start in range(given.num_rows):
                if start + STEPS - 1 > given.num_rows - 1:
                    continue
                expected = serve_chain(draft, embed, given, start, STEPS, following(given))
                for step in range(STEPS):
                    torch.testing.assert_close(steps[step].hidden[first + start], expected[step], atol=1e-5, rtol=1e-4)
            first += given.num_rows


def test_chosen_chains_equal_those_of_all_rows() -> None:
    """Leaving rows out of the later steps changes nothing for the others."""
    draft, embed = random_draft(), embeddings()
    batch = pack([sample(1, 9, 3), sample(2, 6, 2), sample(4, 4, 1)], STEPS)
    chosen = torch.tensor([0, 4, 8, 16, 18])
    with torch.no_grad():
        whole = list(unroll(draft, embed, batch, STEPS))
        part = list(unroll(draft, embed, batch, STEPS, chosen))
    for step in range(1, STEPS):
        assert part[step].rows.tolist() == chosen.tolist()
        torch.testing.assert_close(part[step].hidden, whole[step].hidden[chosen], atol=1e-5, rtol=1e-4)


def test_no_row_sees_a_later_one() -> None:
    """Changing a row's states and the tokens after it leaves every earlier row's chain as it was."""
    draft, embed = random_draft(), embeddings()
    given = sample(1, 8, 2)
    other = Sample(
        **{
            name: getattr(given, name)
            for name in ("request_id", "workload", "first_position", "loss_mask", "topk_ids", "topk_logprobs")
        },
        token_ids=given.token_ids.copy(),
        aux=given.aux.copy(),
        next_token_id=5,
    )
    other.token_ids[7] = (other.token_ids[7] + 1) % 60
    other.aux[7] ^= 0x8000
    with torch.no_grad():
        a = list(unroll(draft, embed, pack([given], STEPS), STEPS))
        b = list(unroll(draft, embed, pack([other], STEPS), STEPS))
    for step in range(STEPS):
        # The chain of step j at row r reads the token at r + 1 + j.
        unchanged = 6 - step
        assert torch.equal(a[step].hidden[:unchanged], b[step].hidden[:unchanged])
        assert not torch.equal(a[step].hidden[unchanged], b[step].hidden[unchanged])


def test_requests_do_not_see_each_other() -> None:
    """A sequence gives the same states alone and between others."""
    draft, embed = random_draft(), embeddings()
    alone = list(unroll(draft, embed, pack([sample(2, 6, 2)], STEPS), STEPS))
    between = list(unroll(draft, embed, pack([sample(1, 4, 2), sample(2, 6, 2), sample(3, 3, 1)], STEPS), STEPS))
    for a, b in zip(alone, between, strict=True):
        torch.testing.assert_close(a.hidden, b.hidden[4:10], atol=1e-5, rtol=1e-4)


def test_gradients_reach_every_weight() -> None:
    """The last step's states depend on all of the draft but norm and head."""
    draft, embed = random_draft(), embeddings()
    *_, last = unroll(draft, embed, pack([sample(1, 8, 2)], STEPS), STEPS)
    last.hidden.square().sum().backward()
    without = {name for name, p in draft.named_parameters() if p.grad is None or not p.grad.abs().sum()}
    assert without == {"norm.weight", "lm_head.weight"}

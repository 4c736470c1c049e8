import torch

from tests.unit.trainer.maths import VOCAB, embeddings, random_draft, sample, serve_chain
from tide_daemon.draft.model import Eagle3Draft
from tide_daemon.trainer import evaluate, positions
from tide_daemon.trainer.evaluate import score
from tide_daemon.trainer.join import cut
from tide_daemon.trainer.sample import Sample

STEPS = 3
TARGET_IDS = torch.arange(0, 48, 2)


def biased_draft() -> Eagle3Draft:
    """Names few tokens, so that a random answer is hit often enough to count."""
    draft = random_draft(3)
    with torch.no_grad():
        draft.lm_head.weight[4:] *= 0.01
    return draft


def served(draft: Eagle3Draft, embed: torch.Tensor, given: Sample, start: int) -> int:
    """Accept length of the chain at `start`, drafting freely from its own words as an engine does."""
    truth = [*given.token_ids[1:].tolist(), given.next_token_id]
    tokens = truth[: start + 1]
    for step in range(STEPS):
        hidden = serve_chain(draft, embed, given, start, step + 1, [*tokens, 0])[step]
        drafted = int(TARGET_IDS[draft.logits(hidden).argmax()])
        if drafted != truth[start + 1 + step]:
            return 1 + step
        tokens.append(drafted)
    return 1 + STEPS


def few_words(seed: int, rows: int, prompt: int) -> Sample:
    given = sample(seed, rows, prompt)
    given.token_ids[:] = given.token_ids % 4 * 2
    return Sample(
        **{name: getattr(given, name) for name in Sample.__slots__ if name != "next_token_id"}, next_token_id=2
    )


def test_scores_equal_a_chain_that_drafts_from_its_own_words() -> None:
    """Counting leading hits on the true tokens gives the accept length of a free-running chain."""
    draft, embed = biased_draft(), embeddings()
    samples = [few_words(1, 40, 6), few_words(2, 25, 4)]
    with torch.no_grad():
        for given, found in zip(samples, score(draft, embed, TARGET_IDS, samples, STEPS), strict=True):
            prompt = int((given.loss_mask == 0).sum())
            starts = range(prompt - 1, given.num_rows - STEPS)
            lengths = [served(draft, embed, given, start) for start in starts]
            assert found.num_positions == len(lengths)
            assert found.num_tokens == sum(lengths)
            assert found.accepted_at == tuple(sum(n > j + 1 for n in lengths) for j in range(STEPS))
            assert found.first_position == prompt - 1
            walked, at = [], 0
            while at < len(lengths):
                walked.append(lengths[at])
                at += lengths[at]
            assert (found.walked_positions, found.walked_tokens) == (len(walked), sum(walked))
    assert sum(s.num_tokens - s.num_positions for s in score(draft, embed, TARGET_IDS, samples, STEPS)) > 5


def test_groups_and_order_do_not_change_a_score(monkeypatch) -> None:
    """Each request scores the same alone, in any group and in any order."""
    draft, embed = biased_draft(), embeddings()
    samples = [few_words(i, 12 + 3 * i, 3) for i in range(6)]
    alone = [score(draft, embed, TARGET_IDS, [given], STEPS)[0] for given in samples]
    monkeypatch.setattr(evaluate, "BATCH_ROWS", 40)
    assert score(draft, embed, TARGET_IDS, samples, STEPS) == alone
    assert score(draft, embed, TARGET_IDS, samples[::-1], STEPS) == alone[::-1]


def test_short_and_promptless_samples() -> None:
    """A sample without a whole chain scores nothing; one that starts late has absolute positions."""
    draft, embed = biased_draft(), embeddings()
    late = sample(3, 12, 0, first_position=50)
    found = score(draft, embed, TARGET_IDS, [sample(1, 2, 1), late], STEPS)
    assert found[0].num_positions == 0
    assert found[0].first_position == -1
    assert found[1].first_position == 50
    assert found[1].num_positions == 12 - STEPS


def test_starts_are_summed_by_their_place_in_the_response(monkeypatch) -> None:
    """Counted from the first response token of the request, also behind a gap; the buckets add up to the whole."""
    monkeypatch.setattr(evaluate, "BUCKETS", (0, 4, 8))
    monkeypatch.setattr(positions, "BUCKETS", (0, 4, 8))
    draft, embed = biased_draft(), embeddings()
    whole = few_words(1, 20, 6)
    first, second = cut(whole, 0, 11), cut(whole, 13, 20)
    found = score(draft, embed, TARGET_IDS, [whole, first, second], STEPS)
    for each in found:
        assert sum(starts for starts, _ in each.by_position) == each.num_positions
        assert sum(tokens for _, tokens in each.by_position) == each.num_tokens
    # Starts at rows 5..16 are the tokens 0..11 of the response; the parts have rows 5..7 and 13..16 (tokens 8..11).
    assert [starts for starts, _ in found[0].by_position] == [4, 4, 4]
    assert [starts for starts, _ in found[1].by_position] == [3, 0, 0]
    assert [starts for starts, _ in found[2].by_position] == [0, 0, 4]


def test_token_outside_the_draft_vocabulary_is_never_accepted() -> None:
    """Odd tokens have no row in the head, so no chain goes past one."""
    given = sample(5, 20, 1)
    given.token_ids[:] = 1
    found = score(random_draft(), embeddings(), TARGET_IDS, [given], STEPS)[0]
    assert found.num_tokens == found.num_positions
    assert VOCAB > 48

"""What `ops/bench learn` scores on."""

from benches.learn import samples_of
from benches.learn_traffic import Request

from tests.trainer_samples import chunks


def test_every_held_out_request_is_scored() -> None:
    """One sample a request, with all its rows."""
    made = [next(iter(chunks(number, captured_at=1.0, node="s1"))) for number in range(5)]
    requests = [Request(chunk, [], []) for chunk in made]
    samples = samples_of(requests)
    assert [sample.request_id for sample in samples] == [chunk.request_id for chunk in made]
    assert [sample.num_rows for sample in samples] == [len(chunk.token_ids) for chunk in made]

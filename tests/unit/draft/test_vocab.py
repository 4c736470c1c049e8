import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tide_daemon.draft.vocab import VocabMap, build_vocab_map, map_from_ids, moved_rows
from tide_daemon.errors import DraftError


def test_first_map_names_the_most_frequent_tokens_in_ascending_order() -> None:
    """Without a previous map rows are sorted by target id, ties go to the lower id."""
    counts = torch.tensor([0, 5, 1, 9, 1, 0])
    assert build_vocab_map(counts, 3).target_ids.tolist() == [1, 2, 3]


def test_tokens_that_stay_keep_their_rows() -> None:
    """A rebuilt map changes only the rows of tokens that left."""
    old = map_from_ids(torch.tensor([7, 3, 5, 1]), 10)
    counts = torch.zeros(10)
    counts[[3, 5, 1, 9]] = torch.tensor([4.0, 3.0, 2.0, 8.0])
    new = build_vocab_map(counts, 4, previous=old)
    assert new.target_ids.tolist() == [9, 3, 5, 1]
    assert moved_rows(old, new).tolist() == [True, False, False, False]


def test_ties_do_not_move_rows() -> None:
    """A token in the map is not replaced by one that was seen just as often."""
    old = map_from_ids(torch.tensor([8, 9]), 10)
    assert torch.equal(build_vocab_map(torch.ones(10), 2, previous=old).d2t, old.d2t)


def test_required_tokens_are_always_in() -> None:
    """The end-of-sequence token is in the map though it was never counted."""
    assert 0 in build_vocab_map(torch.tensor([0, 9, 9, 9]), 2, always=(0,)).target_ids.tolist()


@given(
    st.lists(st.integers(0, 20), min_size=12, max_size=12),
    st.lists(st.integers(0, 20), min_size=12, max_size=12),
    st.integers(1, 12),
)
def test_maps_are_valid_inverse_and_stable(first: list[int], second: list[int], size: int) -> None:
    """Every built map is a bijection of its rows, and rebuilding from equal counts changes nothing."""
    old = build_vocab_map(torch.tensor(first), size)
    new = build_vocab_map(torch.tensor(second), size, previous=old)
    assert new.size == size
    assert torch.equal(new.draft_ids()[new.target_ids], torch.arange(size))
    stays = set(old.target_ids.tolist()) & set(new.target_ids.tolist())
    for token in stays:
        assert old.draft_ids()[token] == new.draft_ids()[token]
    assert torch.equal(build_vocab_map(torch.tensor(second), size, previous=new).d2t, new.d2t)


@pytest.mark.parametrize(
    ("d2t", "t2d"),
    [
        (torch.tensor([0, -1]), torch.tensor([True, False, False])),
        (torch.tensor([0, 5]), torch.tensor([True, True, False])),
        (torch.tensor([-1, 0]), torch.tensor([True, True, False])),
        (torch.tensor([0, 0]), torch.tensor([True, False, True])),
        (torch.tensor([0, torch.iinfo(torch.int64).min]), torch.tensor([True, True, False])),
        (torch.tensor([0, torch.iinfo(torch.int64).max]), torch.tensor([True, True, False])),
        (torch.tensor([0, 0], dtype=torch.int32), torch.tensor([True, True, False])),
        (torch.tensor([0, 0]), torch.tensor([1, 1, 0])),
        (torch.tensor([[0, 0]]), torch.tensor([True, True, False])),
    ],
)
def test_broken_maps_are_refused(d2t: torch.Tensor, t2d: torch.Tensor) -> None:
    """Duplicates, ids outside the vocabulary, wrong types and a mask that disagrees give DraftError."""
    with pytest.raises(DraftError):
        VocabMap(d2t, t2d)


def test_size_of_the_map_is_fixed() -> None:
    """A previous map of another size is an error, because an engine's head cannot grow."""
    with pytest.raises(DraftError):
        build_vocab_map(torch.ones(10), 3, previous=map_from_ids(torch.tensor([1, 2]), 10))

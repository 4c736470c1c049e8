from benches.ngram import proposal, walk


def test_longest_suffix_and_newest_occurrence_win() -> None:
    """What followed the last place where most of the newest words stood is proposed."""
    assert proposal([1, 2, 3, 9, 2, 3, 8, 1, 2, 3], 3) == [9, 2, 3]
    assert proposal([5, 3, 7, 3, 8, 3], 2) == [8, 3]
    assert proposal([1, 2, 3], 3) == []


def test_steps_begin_behind_what_was_accepted() -> None:
    """A repeated phrase is accepted whole; starts without all their answers are not counted."""
    prompt = [1, 2, 3, 4, 5, 6, 7, 8]
    # Starts at 1, then behind three accepted drafts and the bonus token; 5's answers are all known.
    assert walk(prompt, [1, 2, 3, 4, 5, 6, 7, 8], 3) == (2, 8)
    assert walk(prompt, [20, 21, 22, 23, 24], 3) == (2, 2)
    assert walk(prompt, [1, 2], 3) == (0, 0)

"""What a round trains on: new requests, replay, never a held-out one, in an order that a restart repeats."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.trainer_samples import request_id
from tide_daemon.trainer.index import ChunkIndex, StoredRequest, is_heldout
from tide_daemon.trainer.rounds import Rounds, Trained
from tide_daemon.trainer.segments import ChunkMeta, Entry, SegmentName
from tide_daemon.trainer.selection import by_workload, heldout, new_tokens, select, unseen
from tide_daemon.trainer.settings import TrainerSettings, from_map, to_map

NOW = 10_000.0
SETTINGS = TrainerSettings("t1", "tiny", round_max_tokens=10_000, replay_share=0.8, batch_tokens=100)


def requests(count: int, *, rows: int = 30, response: int = 20, finished: bool = True) -> dict[str, StoredRequest]:
    index = ChunkIndex()
    for number in range(count):
        meta = ChunkMeta(
            number + 1, request_id(number), 0, finished, False, 0, rows, response, NOW - 500 + number, NOW, ""
        )
        index.add(SegmentName(1, 0), Entry(Path("x"), 0, 0, 0, meta))
    return index.requests


def test_heldout_requests_are_never_trained_on() -> None:
    """Neither as new ones nor as replay; and scores use only them."""
    found = requests(200)
    selection = select(found, SETTINGS, 0, 1, NOW)
    trained = {item for step in selection.steps for item, _ in step}
    held = {request.request_id for request in heldout(found, SETTINGS, NOW)}
    assert len(held) > 5
    assert not trained & held
    assert trained | held <= found.keys()
    assert all(is_heldout(request, SETTINGS.heldout_share) for request in held)


def test_a_round_takes_new_requests_and_four_times_replay() -> None:
    """Shares are of response tokens; every new request is in, and the cursor moves past all of them."""
    found = requests(100)
    selection = select(found, SETTINGS, 80, 2, NOW)
    new = {r.request_id for r in found.values() if r.finished_sequence > 80 and not is_heldout(r.request_id, 0.1)}
    trained = {item for step in selection.steps for item, _ in step}
    assert selection.num_new_tokens == len(new) * 20 == new_tokens(found, SETTINGS, 80)
    assert new <= trained
    assert selection.num_passed_tokens == pytest.approx(5 * selection.num_new_tokens, abs=20)
    assert selection.cursor in (99, 100)
    assert new_tokens(found, SETTINGS, selection.cursor) == 0


def test_too_much_that_is_new_is_cut_to_the_newest() -> None:
    """The budget counts repeats; what does not fit is not new any more and can be replayed."""
    found = requests(1000)
    selection = select(found, replace(SETTINGS, round_max_tokens=1000), 0, 1, NOW)
    assert selection.num_new_tokens == 200
    assert selection.num_passed_tokens == pytest.approx(1000, abs=20)
    assert selection.newest_at == max(r.newest_at for r in found.values() if not is_heldout(r.request_id, 0.1))
    assert selection.cursor >= 990


def test_the_same_round_has_the_same_order_and_another_round_another() -> None:
    """A killed round resumes by its plan; rounds differ."""
    found = requests(100)
    assert select(found, SETTINGS, 0, 1, NOW) == select(found, SETTINGS, 0, 1, NOW)
    assert select(found, SETTINGS, 0, 1, NOW).steps != select(found, SETTINGS, 0, 2, NOW).steps


def test_unfinished_and_old_requests_are_left_out() -> None:
    """A request still running is not new yet; one beyond the replay age is not replayed."""
    assert select(requests(50, finished=False), SETTINGS, 0, 1, NOW).steps == []
    found = requests(50)
    selection = select(found, replace(SETTINGS, replay_max_age_s=470.0), 0, 1, NOW)
    assert selection.oldest_at >= NOW - 470
    assert selection.steps


def test_batches_hold_about_the_wanted_rows_and_long_requests_become_pieces() -> None:
    """No step is larger than a batch unless one piece is."""
    settings = replace(SETTINGS, batch_tokens=100, sequence_tokens=64, context_tokens=10)
    selection = select(requests(20, rows=300, response=150), settings, 0, 1, NOW)
    assert {index for step in selection.steps for _, index in step} == {0, 1, 2}
    lengths = {0: 64, 1: 64, 2: 32}
    assert all(len(step) == 1 or sum(lengths[i] for _, i in step) <= 100 for step in selection.steps)


def test_settings_survive_the_pipe() -> None:
    """And an unknown name is an error: daemon and worker are of two releases."""
    assert from_map(to_map(SETTINGS)) == SETTINGS
    with pytest.raises(TypeError):
        from_map({**to_map(SETTINGS), "new_in_a_later_release": 1})


def test_rounds_are_found_again_and_old_ones_pruned(tmp_path: Path) -> None:
    """The newest trained rounds stay, for the next one starts from them."""
    rounds = Rounds(tmp_path)
    assert rounds.last_begun() is None
    trained = Trained("d", "s", "line", 5, 100, 500, 100, 9, 1.0, 2.0, 3.0, 1.0, 4.0, 4.0)
    for number in range(1, 6):
        rounds.open(number).set_trained(trained)
    rounds.open(6).write("plan", {"cursor": 5})
    again = Rounds(tmp_path)
    again.prune()
    assert [round_.number for round_ in again.all()] == [4, 5, 6]
    begun = again.last_begun()
    assert begun is not None and begun.number == 6
    again.open(7)
    assert begun.number == 6, "a folder alone is no round that was begun"
    last = again.last_trained()
    assert last is not None and last.number == 5 and last.trained() == trained


def test_half_of_the_replay_is_recent_traffic() -> None:
    """However long the history, what is asked now is passed through several times; the rest comes from all of it."""
    found = requests(4000)
    selection = select(found, SETTINGS, 3950, 2, NOW)
    sequences = [found[item].finished_sequence for step in selection.steps for item, _ in step]
    replayed = [sequence for sequence in sequences if sequence <= 3950]
    recent = sum(sequence > 3500 for sequence in replayed)
    assert 0.4 < recent / (len(sequences) - len(sequences) / 5) < 0.65
    assert min(replayed) < 1000


def test_what_is_stored_is_told_by_workload() -> None:
    """Finished requests, and tokens since the last round that may be trained on; of many labels the largest few."""
    held = requests(40)
    for number, request in enumerate(held.values()):
        request.workload = "code" if number % 4 else "chat"
    told = {item.workload: item for item in by_workload(held, SETTINGS, 20)}
    assert list(told) == ["code", "chat"] and told["code"].num_requests == 30 and told["chat"].num_requests == 10
    assert told["code"].new_tokens + told["chat"].new_tokens == new_tokens(held, SETTINGS, 20)
    for number, request in enumerate(held.values()):
        request.workload = f"w{number}"
    assert len(by_workload(held, SETTINGS, 0)) == 16


def test_a_shadow_score_is_of_what_the_draft_has_not_learnt() -> None:
    """Everything finished after its cursor, and what is held out for ever; the newest first."""
    found = requests(100)
    chosen = unseen(found, SETTINGS, 80)
    assert [r.finished_sequence for r in chosen[:20]] == list(range(100, 80, -1))
    assert all(is_heldout(r.request_id, SETTINGS.heldout_share) for r in chosen[20:])
    assert {r.request_id for r in heldout(found, SETTINGS, NOW)} <= {r.request_id for r in chosen}

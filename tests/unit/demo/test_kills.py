"""What `ops/demo --kill` says about a journal, and when it kills."""

from demo_run.kills import FIRST_AT, LAST_AT, ORDER, done_twice, moments

from tide_daemon.wire.records import Decision

JUDGED = {"instruction": "judged", "version": 3, "verdict": "promote"}
UNSURE = {"instruction": "judged", "version": 3, "verdict": "need_more_data"}


def decision(fencing_token: int, sequence: int, *instructions: dict[str, object]) -> Decision:
    return Decision(sequence, fencing_token, "c", 0.0, {}, instructions, "because", {})


def set_server(generation: int) -> dict[str, object]:
    return {"instruction": "set_server", "node": "n", "generation": generation}


def test_a_sound_journal_shows_nothing_twice() -> None:
    journal = [
        decision(1, 1, UNSURE),
        decision(1, 2, UNSURE, set_server(1)),
        decision(2, 1, JUDGED, set_server(2)),
        decision(2, 2, {**JUDGED, "verdict": "reject", "from_pool": True}),
    ]
    assert done_twice(journal) == []


def test_what_happened_twice_is_named() -> None:
    journal = [decision(2, 1, JUDGED, set_server(1)), decision(2, 1, JUDGED), decision(1, 9, set_server(1))]
    assert done_twice(journal) == [
        "decision (2, 1) comes after (2, 1)",
        "decision (1, 9) comes after (2, 1)",
        "version 3 was judged 2 times",
        "n: generation 1 stands for 2 states",
    ]


def test_all_are_killed_within_the_run() -> None:
    planned = moments(900.0)
    assert [name for _, name in planned] == list(ORDER)
    times = [at for at, _ in planned]
    assert times == sorted(times) and times[0] == 900.0 * FIRST_AT and abs(times[-1] - 900.0 * LAST_AT) < 1e-6

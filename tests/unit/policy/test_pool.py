"""Which drafts are kept to be served again."""

from dataclasses import replace

from tide_daemon.policy import pool
from tide_daemon.policy.events import FleetState
from tide_daemon.policy.settings import PolicySettings

SETTINGS = PolicySettings(pool_size=3, gate_max_loss=0.05)


def digest_of(version: int) -> str:
    return f"{version:064x}"


def served(fleet: FleetState, version: int, at: float, **lengths: float) -> FleetState:
    """The state after this version passed its canary; `lengths` are the gate's."""
    canary = replace(
        fleet, stage="canary", candidate_version=version, candidate_digest=digest_of(version), canary="a",
        candidate_lengths=tuple(lengths.items()),
    )  # fmt: skip
    rest = replace(
        canary, stage="rest", since=at, previous_version=fleet.serving_version, previous_digest=fleet.serving_digest,
        serving_version=version, serving_digest=digest_of(version), candidate_version=0, candidate_digest="", canary="",
    )  # fmt: skip
    return pool.follow(canary, rest, SETTINGS)


def rolled_back(fleet: FleetState, at: float) -> FleetState:
    """The state after the serving draft failed."""
    return pool.follow(
        fleet,
        replace(
            fleet, stage="steady", since=at, serving_version=fleet.previous_version,
            serving_digest=fleet.previous_digest, refused=(*fleet.refused, fleet.serving_version),
        ),
        SETTINGS,
    )  # fmt: skip


def versions(fleet: FleetState) -> list[int]:
    return [past.version for past in fleet.pool]


def test_a_draft_that_a_better_one_followed_is_let_go() -> None:
    """Only the one served before is kept, because a rollback goes there."""
    fleet = FleetState()
    for version in range(1, 6):
        fleet = served(fleet, version, float(version), code=1.5 + version / 10)
    assert versions(fleet) == [4]
    assert fleet.lengths == (("code", 2.0),)


def test_the_last_draft_before_a_shift_is_kept() -> None:
    """It is the end of its time; those after it are made for other traffic."""
    fleet = pool.with_shift(served(FleetState(), 1, 1.0), settled=True)
    for version in (2, 3, 4):
        fleet = served(fleet, version, float(version))
    assert versions(fleet) == [1, 3]
    first = fleet.pool[0]
    assert (first.outdated, first.settled, first.digest, first.served_until) == (True, True, digest_of(1), 2.0)
    assert not fleet.outdated


def test_the_last_word_on_a_workload_is_kept() -> None:
    """Nobody after version 2 did as well on code; what version 1 did is matched within the margin by version 2."""
    fleet = served(FleetState(), 1, 1.0, code=2.05)
    fleet = served(fleet, 2, 2.0, code=2.0, chat=1.2)
    for version in (3, 4, 5):
        fleet = served(fleet, version, float(version), code=1.8, chat=1.6)
    assert versions(fleet) == [2, 4]


def test_the_pool_is_bounded() -> None:
    """The last words on something stay; of the others the one that stopped serving longest ago goes."""
    fleet = served(FleetState(), 1, 1.0, code=2.0)
    for version in range(2, 9):
        fleet = served(pool.with_shift(fleet, settled=False), version, float(version), chat=1.5)
    assert versions(fleet) == [1, 6, 7]


def test_a_draft_that_is_served_again_leaves_the_pool() -> None:
    """What is newly known of it is added to what was known; the one that it replaced was for other traffic."""
    fleet = served(pool.with_shift(served(FleetState(), 1, 1.0, code=2.0), settled=True), 2, 2.0, chat=1.5)
    fleet = served(fleet, 1, 3.0, chat=1.3)
    assert versions(fleet) == [2] and fleet.serving_version == 1
    assert fleet.lengths == (("chat", 1.3), ("code", 2.0))
    assert fleet.pool[0].outdated


def test_a_rollback_brings_back_what_was_known() -> None:
    """The draft before serves again as if nothing had been; the one that failed is never in the pool."""
    before = pool.with_shift(served(FleetState(), 1, 1.0, code=2.0), settled=True)
    fleet = rolled_back(served(before, 2, 2.0, code=2.2), 3.0)
    assert (fleet.serving_version, fleet.lengths, fleet.outdated, fleet.settled) == (1, before.lengths, True, True)
    assert versions(fleet) == []
    assert versions(served(fleet, 3, 4.0)) == [1]


def test_a_canary_that_fails_is_out_of_the_pool() -> None:
    """An earlier draft may fail too: then it is not tried again."""
    fleet = served(pool.with_shift(served(FleetState(), 1, 1.0), settled=True), 2, 2.0)
    canary = replace(fleet, stage="canary", candidate_version=1, candidate_digest=digest_of(1), canary="a")
    dropped = replace(canary, stage="steady", candidate_version=0, candidate_digest="", canary="", refused=(1,))
    assert versions(pool.follow(canary, dropped, SETTINGS)) == []


def test_no_pool_when_none_is_wanted() -> None:
    """Size 0."""
    none = replace(SETTINGS, pool_size=0)
    before = FleetState(serving_version=1, serving_digest=digest_of(1), outdated=True, stage="canary")
    after = replace(before, stage="rest", serving_version=2, serving_digest=digest_of(2), previous_version=1)
    assert pool.follow(before, after, none).pool == ()


def test_scores_of_the_pool_replace_what_was_known() -> None:
    """Of the workloads that were scored; the others stay."""
    fleet = served(pool.with_shift(served(FleetState(), 1, 1.0, chat=1.5, code=2.0), settled=True), 2, 2.0)
    assert pool.with_lengths(fleet, 1, (("code", 1.8),)).pool[0].lengths == (("chat", 1.5), ("code", 1.8))
    assert versions(pool.without(fleet, [1])) == []

"""Whole runs: the same every time, the invariants hold throughout, and TIDE does what it is for."""

import pytest

from tests.unit.simulate.small import small
from tide_daemon.simulate.figures import compare, result_map
from tide_daemon.simulate.reading import read
from tide_daemon.simulate.running import NEWEST, PLAIN, STATIC, run_fixed, run_tide
from tide_daemon.simulate.tally import Tally

SHIFT = [
    {"name": "code", "hours": 0.1, "running": 16.0, "running_spread": 0.1, "mix": {"code": 1.0}},
    {"name": "chat", "hours": 0.3, "running": 16.0, "running_spread": 0.1, "mix": {"chat": 1.0}},
]


def test_the_same_seed_gives_the_same_result() -> None:
    """Digit for digit, decisions included; another seed gives another one."""
    scenario = read("shift", small(phase=SHIFT, network={"loss": 0.05, "delay_s": 0.2}))
    first, second = (result_map(scenario, run_tide(scenario), [], None) for _ in range(2))
    assert first == second
    other = read("shift", small(phase=SHIFT, network={"loss": 0.05, "delay_s": 0.2}, seed=2))
    assert result_map(other, run_tide(other), [], None)["counts"] != first["counts"]


def test_policies_meet_the_same_traffic() -> None:
    """Whatever is decided, plain decoding would have made the same of it."""
    scenario = read("shift", small(phase=SHIFT, stall_s=0.0))
    plain = run_fixed(scenario, PLAIN, 0).counts
    assert plain.tokens == pytest.approx(plain.plain_tokens)
    for run in (run_tide(scenario), run_fixed(scenario, STATIC, 2), run_fixed(scenario, NEWEST, 2)):
        assert run.counts.plain_tokens == pytest.approx(plain.tokens, rel=1e-3)


def test_a_shift_is_answered_by_a_new_draft() -> None:
    """TIDE beats plain decoding and the first draft after a shift, and is never far below plain."""
    scenario = read("shift", small(phase=SHIFT))
    tide, compared = run_tide(scenario, checked=True), compare(scenario)
    result = result_map(scenario, tide, compared, None)
    chat = result["phases"][1]["counted_tokens"]
    assert tide.counts.promoted > 0 and tide.versions[-1][1] > 1
    assert chat["tide"] > 1.1 * chat["plain"] and chat["tide"] > 1.1 * chat["static"]
    assert result["worst_window"]["over_plain"] > 0.95
    assert {each.policy for each in compared} == {"plain", "static", "newest"}


@pytest.mark.parametrize("kind", ["trainers_lost", "controller_lost", "cut_off", "engine_down"])
def test_every_failure_is_survived(kind: str) -> None:
    """With invariants checked after every event, and a draft served again at the end."""
    failure = {"kind": kind, "at_hours": 0.12, "seconds": 60.0, "share": 0.5}
    scenario = read("broken", small(phase=SHIFT, failure=[failure], network={"loss": 0.1, "delay_s": 0.3}))
    tide = run_tide(scenario, checked=True)
    assert tide.versions[-1][1] > 0
    assert [decision.text for decision in tide.decisions if decision.kind == "failure"] == [
        f"{kind} begins",
        f"{kind} is over",
    ]


def test_a_successor_goes_on_from_what_stands_on_the_bus() -> None:
    """The controller is replaced every minute, and lost for 15 seconds each time: no version is judged twice."""
    failures = [{"kind": "controller_lost", "at_hours": minute / 60, "seconds": 15.0} for minute in range(2, 20, 2)]
    scenario = read("replaced", small(phase=SHIFT, failure=failures))
    tide = run_tide(scenario, checked=True)
    judged = [d.text.split(":")[0] for d in tide.decisions if d.kind in ("promote", "reject", "need_more_data")]
    assert judged and len(judged) == len(set(judged))
    assert tide.counts.promoted > 0


def test_with_nobody_who_leads_a_server_gives_up_steps_that_lose() -> None:
    """Traffic leaves the draft behind while the controller is away: near plain decoding all the same."""
    lost = {"kind": "controller_lost", "at_hours": 0.099, "seconds": 720.0}
    shift = [SHIFT[0], {**SHIFT[1], "mix": {"odd": 1.0}}]
    workload = {**small()["workload"], "odd": {"start": 0.02, "ceiling": 0.6, "half_tokens": 100_000.0}}
    scenario = read("alone", small(phase=shift, workload=workload, failure=[lost]))
    result = result_map(scenario, run_tide(scenario, checked=True), [], None)
    assert result["worst_window"]["over_plain"] > 0.97


def test_a_poisoned_candidate_is_rolled_back_on_its_canary() -> None:
    """It passes the gate, fails live, and the fleet never serves it."""
    scenario = read("poisoned", small(phase=SHIFT, poison=[{"after_hours": 0.12, "live_share": 0.3}]))
    tide = run_tide(scenario, checked=True)
    (failed,) = [decision for decision in tide.decisions if "rolled back" in decision.text]
    assert tide.counts.poisoned == tide.counts.rolled_back == 1
    assert not {version for _, version in tide.versions} & {int(word) for word in failed.text.split() if word.isdigit()}


def test_day_0_begins_without_a_draft() -> None:
    """No first draft: plain decoding until the first candidate has passed."""
    document = small(phase=SHIFT)
    del document["first_draft"]
    tide = run_tide(read("day0", document), checked=True)
    assert tide.versions[0] == (0.0, 0) and tide.versions[-1][1] > 0


def comes_back(pool_size: int) -> Tally:
    """Code, then chat for long enough that the draft forgets code, then code again after 2,160 s."""
    phases = [
        {"name": name, "hours": hours, "running": 16.0, "running_spread": 0.1, "mix": {name: 1.0}}
        for name, hours in (("code", 0.2), ("chat", 0.4), ("code", 0.3))
    ]
    policy = {
        "max_batch_size": 32, "train_min_tokens": 1_000_000, "train_shift_tokens": 500_000, "idle_sample_rate": 0.02,
        "pool_size": pool_size,
    }  # fmt: skip
    document = small(phase=phases, policy=policy, learning={"forget_tokens": 300_000.0})
    return run_tide(read("comes_back", document), checked=True)


def recovered_after_s(tally: Tally, since: float) -> float:
    """Seconds until the fleet's accept length is within 5% of the best that it had before."""
    lengths = [point.tokens / point.chains for point in tally.series if point.chains > 0.0]
    best = max(lengths[: int(700 / tally.point_s)])
    first = int(since / tally.point_s) + 1
    return next(index for index in range(first, len(lengths)) if lengths[index] >= 0.95 * best) * tally.point_s - since


def test_a_workload_that_comes_back_is_served_by_the_draft_that_knew_it() -> None:
    """Without a training round, and sooner than training brings it back."""
    pool, trained = comes_back(pool_size=4), comes_back(pool_size=0)
    back = [decision for decision in pool.decisions if decision.at_s > 2160.0]
    served = next(at for at, version in pool.versions if at > 2160.0)
    (version,) = [version for at, version in pool.versions if at == served]
    assert version in [known for at, known in pool.versions if at < 800.0]  # its last round on code ended after that
    assert not [decision for decision in back if decision.kind == "round" and decision.at_s <= served]
    assert [decision for decision in back if decision.kind == "pool" and f"version {version}, " in decision.text]
    # A round that is under way when the traffic comes back (about a minute) is ended first: with or without a pool.
    assert recovered_after_s(pool, 2160.0) < 120.0 < 0.5 * recovered_after_s(trained, 2160.0)
    assert pool.counts.rounds < trained.counts.rounds
    assert pool.phases[2].tokens > 1.02 * trained.phases[2].tokens
    assert pool.counts.pool_scorings <= 4
    assert trained.counts.pool_scorings == trained.counts.pool_promoted == 0

"""Whatever happens, in whatever order: the invariants hold, a journal replays, a successor goes on."""

import itertools
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tide_daemon.policy import rollout
from tide_daemon.policy.acceptance import AcceptanceMonitor
from tide_daemon.policy.controller import Controller
from tide_daemon.policy.events import (
    CandidatePublished,
    ControllerStarted,
    Event,
    FleetState,
    OperatorRequested,
    PoolScored,
    RequestScored,
    ServerFound,
    ServerReported,
    ShadowScored,
    StepCount,
    Tick,
    TrainerFound,
    TrainerReported,
    event_from_map,
    event_to_map,
)
from tide_daemon.policy.gate import judge
from tide_daemon.policy.instructions import FleetMoved, Instruction, Judged, SetServer, SetTrainer, instruction_to_map
from tide_daemon.policy.probing import ProbeAccount
from tide_daemon.policy.replay import replay
from tide_daemon.policy.settings import PolicySettings
from tide_daemon.policy.speedup import CostModel
from tide_daemon.policy.steps import batch_edges, build_table, read_table

SETTINGS = PolicySettings(
    max_batch_size=8, watch_min_steps=50, watch_s=5.0, settle_s=1.0, rollout_deadline_s=10.0, lost_after_s=5.0
)
NODES, TRAINERS = ("node-a", "node-b", "node-c"), ("trainer-a", "trainer-b")
seconds = st.floats(0.0, 20.0)
times_s = st.floats(1e-4, 10.0)


@st.composite
def step_counts(draw: st.DrawFn) -> StepCount:
    batch_size, num_steps = draw(st.integers(1, 12)), draw(st.integers(0, 6))
    num_verifies = draw(st.integers(0, 60))
    accepted, reached = [], num_verifies * batch_size
    for _ in range(num_steps):
        reached = draw(st.integers(0, reached))
        accepted.append(reached)
    median = draw(times_s)
    total = median * num_verifies
    return StepCount(
        batch_size,
        num_steps,
        num_verifies,
        num_verifies * batch_size + sum(accepted),
        tuple(accepted),
        total,
        total * draw(st.floats(0.0, 1.0)),
        median,
    )


@st.composite
def server_reports(draw: st.DrawFn) -> ServerReported:
    version = draw(st.integers(0, 5))
    return ServerReported(
        draw(seconds),
        draw(st.sampled_from(NODES)),
        draw(st.integers(0, 5)),
        draw(st.sampled_from(("ready", "ready", "ready", "starting", "capture_off", "down"))),
        version,
        f"{version:064x}" if version else "",
        0,
        1.0,
        tuple(draw(st.lists(step_counts(), max_size=3))),
    )


@st.composite
def candidates(draw: st.DrawFn) -> CandidatePublished:
    version = draw(st.integers(1, 5))
    gain = draw(st.floats(-0.5, 1.0))
    scores = tuple(
        RequestScored(f"{index:016x}", "", 60, 90.0, 90.0 + 60 * gain + index % 3)
        for index in range(draw(st.integers(0, 12)))
    )
    parent = draw(st.integers(0, 5))
    return CandidatePublished(draw(seconds), version, f"{version:064x}", parent, "trainer-a", 0, 3, scores)


trainer_reports = st.builds(
    TrainerReported,
    seconds,
    st.sampled_from(TRAINERS),
    st.integers(0, 5),
    st.sampled_from(("waiting", "training", "scoring", "publishing", "failed")),
    st.integers(0, 5),
    st.integers(0, 10**6),
    st.integers(0, 20_000),
    st.integers(0, 5),
    st.lists(
        st.builds(ShadowScored, st.just(""), st.integers(0, 9), st.integers(0, 900), st.floats(0.0, 3000.0)), max_size=2
    ).map(tuple),
    st.integers(0, 5),
    st.lists(
        st.builds(
            PoolScored,
            st.integers(0, 5),
            st.integers(0, 5),
            st.integers(1, 3),
            st.floats(-0.5, 1.0).map(
                lambda gain: tuple(RequestScored(f"{i:016x}", "", 60, 90.0, 90 + 60 * gain + i % 3) for i in range(12))
            ),
        ),
        max_size=3,
    ).map(tuple),
)


@st.composite
def operator_requests(draw: st.DrawFn) -> OperatorRequested:
    action, version = draw(st.sampled_from(("pin", "pin", "unpin", "roll_back", "forget"))), draw(st.integers(0, 5))
    version = max(1, version) if action == "forget" else version
    digest = f"{version:064x}" if version else ""
    request = draw(st.sampled_from("abcdef")) * 32
    return OperatorRequested(draw(seconds), request, draw(st.floats(900.0, 1500.0)), "me", action, version, digest, "")


events = st.one_of(
    server_reports(), server_reports(), trainer_reports, candidates(), operator_requests(), st.builds(Tick, seconds)
)


def in_order(drawn: list[Event]) -> list[Event]:
    """The same events with times that add up, from 1000."""
    at, ordered = 1000.0, []
    for event in drawn:
        at += event.at
        ordered.append(event_from_map({**event_to_map(event), "at": at}))
    return ordered


def began(fleet: FleetState | None = None, at: float = 1000.0) -> ControllerStarted:
    return ControllerStarted(at, "model", SETTINGS.to_map(), fleet)


def check_instructions(instructions: list[Instruction], generations: dict[str, int]) -> None:
    """What every reader of desired state relies on."""
    for instruction in instructions:
        assert instruction.reason and instruction.cause
        assert all(math.isfinite(number) for number in instruction.numbers.values())
        if isinstance(instruction, SetServer | SetTrainer):
            name = instruction.node if isinstance(instruction, SetServer) else instruction.trainer
            assert instruction.generation == generations.get(name, 0) + 1
            generations[name] = instruction.generation
        if isinstance(instruction, SetServer):
            assert (instruction.draft_version == 0) == (instruction.draft_digest == "")
            assert instruction.steps_table == () or instruction.draft_version != 0


@given(st.lists(events, max_size=60))
@settings(max_examples=150, deadline=None)
def test_invariants_hold_and_journals_replay(drawn: list[Event]) -> None:
    """Any events in any order: invariants after each, generations without holes, the journal replays through JSON."""
    controller, entries, generations = Controller(SETTINGS), [], {}
    for event in [began(), *in_order(drawn)]:
        instructions = controller.handle(event)
        controller.check_invariants()
        check_instructions(instructions, generations)
        entries.append((event_to_map(event), [instruction_to_map(item) for item in instructions]))
    read_back = json.loads(json.dumps(entries, allow_nan=False))
    outcome = replay((event, tuple(made)) for event, made in read_back)
    assert outcome.difference is None and outcome.num_compared == len(entries)


class _Desired:
    """What stands on the bus: the shell's half of a takeover, in a few lines."""

    def __init__(self) -> None:
        self.servers: dict[str, SetServer] = {}
        self.trainers: dict[str, SetTrainer] = {}
        self.fleet: FleetState | None = None

    def journal(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            if isinstance(instruction, FleetMoved):
                self.fleet = instruction.fleet

    def publish(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            if isinstance(instruction, SetServer):
                before = self.servers.get(instruction.node)
                assert instruction.generation > (0 if before is None else before.generation), "published twice"
                self.servers[instruction.node] = instruction
            elif isinstance(instruction, SetTrainer):
                asked = self.trainers.get(instruction.trainer)
                assert instruction.generation > (0 if asked is None else asked.generation), "published twice"
                self.trainers[instruction.trainer] = instruction

    def found(self, at: float) -> list[Event]:
        servers = [
            ServerFound(
                at,
                s.node,
                s.generation,
                s.draft_version,
                s.draft_digest,
                s.steps_table,
                s.collect,
                s.sample_rate,
                s.preferred,
                s.preferred_rate,
            )
            for s in self.servers.values()
        ]
        trainers = [
            TrainerFound(
                at, t.trainer, t.generation, t.round, t.serving_version, t.serving_digest, t.pool, t.pool_scoring
            )
            for t in self.trainers.values()
        ]
        return [*servers, *trainers]


@given(st.lists(events, min_size=1, max_size=40), st.data())
@settings(max_examples=150, deadline=None)
def test_a_leader_killed_anywhere_is_followed_up(drawn: list[Event], data: st.DataObject) -> None:
    """Killed after any event, with its instructions journalled and only some of them published: nothing is judged
    twice, no generation is published twice, and the fleet's draft is never forgotten."""
    ordered = in_order(drawn)
    killed_at = data.draw(st.integers(0, len(ordered) - 1))
    bus, judged = _Desired(), []
    controller = Controller(SETTINGS)
    for index, event in enumerate([began(), *ordered]):
        instructions = controller.handle(event)
        bus.journal(instructions)
        judged += [item.version for item in instructions if isinstance(item, Judged)]
        num_published = data.draw(st.integers(0, len(instructions))) if index == killed_at + 1 else len(instructions)
        bus.publish(instructions[:num_published])
        if index == killed_at + 1:
            fleet = controller.fleet
            controller = Controller(SETTINGS)
            controller.handle(began(bus.fleet, event.at))
            assert controller.fleet == fleet == bus.fleet
            for found in bus.found(event.at):
                controller.handle(found)
        controller.check_invariants()
    assert len(judged) == len(set(judged))


@given(st.lists(st.tuples(st.sampled_from(["canary", "other"]), st.booleans(), st.booleans(), seconds), max_size=30))
@settings(max_examples=100, deadline=None)
def test_a_second_node_never_runs_an_unproven_candidate(turns: list[tuple[str, bool, bool, float]]) -> None:
    """Whatever two nodes report, the other one is asked for the candidate only after the canary stage."""
    controller, at = Controller(SETTINGS), 1000.0
    controller.handle(began())
    for name in ("canary", "other"):
        controller.handle(ServerReported(at, name, 1, "ready", 0, "", 0, 1.0, ()))
    scores = tuple(RequestScored(f"{index:016x}", "", 60, 60.0, 90.0) for index in range(12))
    instructions = controller.handle(CandidatePublished(at, 1, "1" * 64, 0, "trainer", 0, 3, scores))
    for name, runs_it, ready, wait_s in turns:
        at += wait_s
        version, digest = (1, "1" * 64) if runs_it else (0, "")
        step = StepCount(4, 3 if runs_it else 0, 10, 70, (20, 6, 4) if runs_it else (), 0.6, 0.5, 0.06)
        engine = "ready" if ready else "starting"
        instructions = controller.handle(ServerReported(at, name, 1, engine, version, digest, 0, 1.0, (step,)))
        canary = controller.fleet.canary
        for item in instructions:
            if isinstance(item, SetServer) and controller.fleet.stage == rollout.CANARY and item.node != canary:
                assert item.draft_version == 0
        controller.check_invariants()


@given(
    st.lists(st.tuples(st.integers(1, 200), st.lists(st.floats(0, 1), min_size=1, max_size=5), seconds), max_size=40),
    st.floats(0.0, 0.99),
)
def test_survival_never_rises_with_depth(observed: list[tuple[int, list[float], float]], prior: float) -> None:
    """Whatever was counted: 1 >= S_1 >= S_2 >= ..., and the accept length is 1 to max_steps + 1."""
    monitor = AcceptanceMonitor(5, 3.0, 20.0, 3.0, prior)
    for num, shares, elapsed in observed:
        accepted, reached = [], num
        for share in shares:
            reached = int(reached * share)
            accepted.append(reached)
        monitor.observe(num, tuple(accepted), elapsed)
    survival = (1.0, *monitor.survival(8))
    assert all(0.0 <= later <= earlier for earlier, later in itertools.pairwise(survival))
    assert 1.0 <= monitor.accept_length(5) <= 6.0


@given(st.lists(step_counts(), min_size=1, max_size=20), st.integers(1, 16), st.integers(0, 5))
def test_costs_are_positive_and_grow_with_tokens(counts: list[StepCount], batch_size: int, num_steps: int) -> None:
    """Whatever was timed: seconds are finite and positive, T(n) does not fall."""
    cost = CostModel(0.1, 0.1)
    for index, count in enumerate(counts):
        cost.observe(float(index), (count,))
    predicted = cost.step_s(batch_size, num_steps)
    if predicted is not None:
        assert 0.0 < predicted < math.inf
    times = [cost.target_s(n) for n in range(1, 60)]
    if times[0] is not None:
        known = [each for each in times if each is not None]
        assert all(later >= earlier * (1 - 1e-12) for earlier, later in itertools.pairwise(known))


@given(st.dictionaries(st.sampled_from(batch_edges(64)), st.integers(0, 5)))
def test_tables_read_back(chosen: dict[int, int]) -> None:
    """Table and steps by edge are two forms of the same thing."""
    edges = batch_edges(64)
    steps = {edge: chosen.get(edge, 0) for edge in edges}
    table = build_table(steps)
    assert read_table(table, edges) == steps
    assert [edge for edge, _ in table] == sorted({edge for edge, _ in table})


@given(st.lists(st.tuples(st.floats(0.0, 100.0), st.floats(-5.0, 5.0)), max_size=50))
def test_probing_never_loses_more_than_its_account_allows(turns: list[tuple[float, float]]) -> None:
    """Loss so far <= share of busy time + initial credit + the last overrun, if probes start only when covered."""
    account = ProbeAccount(SETTINGS.probe_credit_s / 2)
    busy, overrun = 0.0, 0.0
    for busy_s, lost_s in turns:
        account.earn(busy_s, SETTINGS)
        busy += busy_s
        if account.affords(0.0, SETTINGS):
            account.spend(lost_s)
            overrun = max(overrun, lost_s)
    assert account.lost_s <= SETTINGS.probe_share * busy + SETTINGS.probe_credit_s / 2 + overrun + 1e-9


@given(candidates(), st.integers(0, 5))
def test_the_gate_is_a_function(candidate: CandidatePublished, serving: int) -> None:
    """The same candidate gives the same verdict, with finite numbers; promotion means a bound above the least gain."""
    first, second = judge(candidate, serving, SETTINGS), judge(candidate, serving, SETTINGS)
    assert first == second
    assert all(math.isfinite(number) for number in first.numbers.values())
    if first.verdict == "promote":
        assert first.numbers["lower_bound"] >= SETTINGS.gate_min_gain


@given(st.dictionaries(st.text(max_size=8), st.one_of(st.none(), st.integers(), st.text(max_size=8)), max_size=6))
def test_arbitrary_maps_give_one_error(value: dict[str, object]) -> None:
    """A map that no event made is refused with ValueError, whatever is in it."""
    with pytest.raises(ValueError):
        event_from_map(value)

"""Random fleets, failures, lost and repeated messages, leaders that die after any write: the invariants hold after
every step.

Held after each step, by the numbers of the architecture page where they have one:

    4   a version names one digest, in every instruction
    6   a candidate is asked of one node until it has passed; with several nodes there, it passes only after its
        canary showed the chains that the settings demand
    7   what the policy keeps is bounded
        no draft, no steps; generations never go back or mean two things; what stands is the newest that was journalled,
        or the newest entry still asks for it
        a candidate is judged once; a version is not served again after it was rolled back; only passed drafts are
        served, and tried again
        a leader knows what its predecessor's journal says of the fleet
        a draft is given up before the deadline as one that cannot be had only if a node tried it in vain as often in
        a row as the settings demand, with a broker; then it is given up soon

and at the end of each run:

    9   everybody obeys and reports: every node runs the draft that the fleet wants of it
        the whole journal, all reigns, replays to the same instructions, and so does what follows a renewal
"""

import math
from unittest import mock

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.property.policy.fleet_world import World, name_of
from tide_daemon.policy import controller, rollout
from tide_daemon.policy.events import NO_DRAFT, ServerReported
from tide_daemon.policy.instructions import SetServer, SetTrainer
from tide_daemon.policy.replay import replay
from tide_daemon.policy.settings import PolicySettings

SETTINGS = PolicySettings(
    max_batch_size=8,
    max_steps=3,
    dwell_s=1.0,
    probe_interval_s=2.0,
    train_first_tokens=1000,
    train_min_tokens=2000,
    train_shift_tokens=1000,
    watch_min_steps=200,
    watch_s=5.0,
    settle_s=1.0,
    rollout_deadline_s=10.0,
    canary_busy_s=10.0,
    lost_after_s=5.0,
    score_initial=1,
    pool_size=3,
    pool_deadline_s=10.0,
    pool_interval_s=5.0,
)
NODES = ("node-a", "node-b", "node-c")
names = st.sampled_from(NODES)
probs = st.sampled_from((0.05, 0.4, 0.8, 0.95))


class FleetMachine(RuleBasedStateMachine):
    """See the module docstring. `quality` is the true accept probability of each version."""

    @initialize(num_nodes=st.integers(1, 3), asked_at_once=st.sampled_from((1, 2, 512)))
    def begin(self, num_nodes: int, asked_at_once: int) -> None:
        """As many nodes as one event may ask, or more of them, as in a fleet of more than 512."""
        self.limit = mock.patch.object(controller, "MAX_SERVERS_ASKED", asked_at_once)
        self.limit.start()
        self.world = World(SETTINGS, NODES[:num_nodes])
        self.quality: dict[int, float] = {NO_DRAFT: 0.0}
        self.num_seen = 0
        self.beginnings = [0]
        self.contents: dict[tuple[str, int], object] = {}
        self.highest: dict[str, tuple[int, int]] = {}

    # Time, death

    @rule(seconds=st.floats(0.1, 12.0))
    def time_goes_by(self, seconds: float) -> None:
        self.world.at += seconds
        self.world.deliver(self.world.tick())

    @rule(lives=st.lists(st.integers(0, 6), min_size=1, max_size=4))
    def leaders_will_die(self, lives: list[int]) -> None:
        """This one and its successors, after so many writes: journal entries and desired states counted alike."""
        self.world.writes_left, *self.world.next_lives = lives

    @rule()
    def the_leader_dies_between_events(self) -> None:
        self.world.lead()

    @rule()
    def the_leader_renews_its_reign(self) -> None:
        """Whatever is under way, as when a journal is half full; the journal replays from there as well."""
        begin = len(self.world.journal)
        self.world.renew()
        self.beginnings.append(begin)

    # Nodes

    @rule(name=names, seconds=st.floats(0.2, 3.0), reads=st.booleans(), swaps=st.booleans(), lost=st.booleans())
    def node_lives(self, name: str, seconds: float, reads: bool, swaps: bool, lost: bool) -> None:
        """It may read desired state, may swap, and reports; the report may be lost."""
        world = self.world
        if name not in world.nodes:
            return
        if reads:
            world.node_reads(name)
        if swaps:
            world.nodes[name].swap()
        world.at += seconds / 4
        self._report(name, seconds, lost)

    @rule(seconds=st.floats(0.5, 2.0), turns=st.integers(1, 12))
    def everybody_lives(self, seconds: float, turns: int) -> None:
        """The fleet works for a while as it should, so that runs get far."""
        for _ in range(turns):
            self.world.at += seconds
            for name, node in self.world.nodes.items():
                self.world.node_reads(name)
                node.swap()
                self._report(name, seconds, lost=False)

    @rule(name=names, engine=st.sampled_from(("ready", "ready", "down", "starting", "capture_off")))
    def engine_changes(self, name: str, engine: str) -> None:
        """A restarted engine runs no draft until it swaps again."""
        node = self.world.nodes.get(name)
        if node is None:
            return
        if node.engine in ("down", "starting") and engine == "ready":
            node.version, node.digest = NO_DRAFT, ""
        node.engine = engine

    @rule(name=names)
    def node_daemon_restarts(self, name: str) -> None:
        """It forgets what it held, not what the engine runs."""
        if name in self.world.nodes:
            self.world.nodes[name].held = None

    @rule(name=names, corrupts=st.booleans())
    def swaps_go_wrong(self, name: str, corrupts: bool) -> None:
        """What the engine reads back is another content than the version's, until further notice."""
        if name in self.world.nodes:
            self.world.nodes[name].corrupts = corrupts

    @rule(name=names, trouble=st.sampled_from(("", "missing", "broker")))
    def fetching_goes_wrong(self, name: str, trouble: str) -> None:
        """From now on no draft can be had, or the broker is away, or all is well."""
        if name in self.world.nodes:
            self.world.nodes[name].trouble = trouble

    @rule(turns=st.integers(4, 8))
    def a_canary_cannot_have_its_draft(self, turns: int) -> None:
        """Nobody can: the stage ends in seconds, whichever leaders are killed, and the draft is not tried again."""
        world = self.world
        world.trainer_reads()
        manifest = world.publish(0.5, 12)
        self.quality[manifest.version] = 0.8
        for node in world.nodes.values():
            node.trouble = "missing"
        num_deaths = world.num_deaths
        world.deliver(manifest)
        self.everybody_lives(1.0, turns)
        fleet = world.leader.fleet
        canary = world.nodes.get(fleet.canary)
        if canary is not None and canary.engine == "ready" and canary.version != fleet.candidate_version:
            # A report that kills its leader is lost.
            allowed_s = SETTINGS.draft_max_tries + world.num_deaths - num_deaths
            assert world.at - fleet.since <= allowed_s, "a canary that cannot have its draft is waited for"

    @precondition(lambda self: self.world.last_delivered is not None)
    @rule()
    def a_message_comes_again(self) -> None:
        event = self.world.last_delivered
        assert event is not None
        if isinstance(event, ServerReported):
            self.world.count_delivered(event)
        self.world.deliver(event)

    # The trainer

    @rule(
        state=st.sampled_from(("waiting", "waiting", "training", "failed")),
        tokens=st.integers(0, 4000),
        shadow=st.sampled_from((0.0, 1.2, 2.0)),
        gain=st.sampled_from((None, -0.3, 0.3)),
    )
    def trainer_reports(self, state: str, tokens: int, shadow: float, gain: float | None) -> None:
        """With scores of the serving draft that may have fallen, and of earlier drafts if it was asked for them."""
        world = self.world
        world.new_tokens += tokens
        world.trainer_reads()
        world.deliver(world.trainer_reports(state, shadow, gain))

    @rule(gain=st.sampled_from((-0.3, 0.02, 0.3, 0.9)), requests=st.sampled_from((2, 12)), quality=probs)
    def candidate_is_published(self, gain: float, requests: int, quality: float) -> None:
        """Good or bad offline, and independently good or bad live."""
        manifest = self.world.publish(gain, requests)
        self.quality[manifest.version] = quality
        self.world.deliver(manifest)

    @rule(
        quality=probs, turns=st.integers(2, 25), lives=st.lists(st.integers(0, 30), max_size=3), corrupts=st.booleans()
    )
    def a_rollout_runs_its_course(self, quality: float, turns: int, lives: list[int], corrupts: bool) -> None:
        """A candidate that the gate likes meets a fleet that works, or one that swaps in something else, and perhaps
        a leader that dies on the way."""
        for node in self.world.nodes.values():
            node.corrupts, node.trouble = corrupts, ""
        self.world.trainer_reads()
        manifest = self.world.publish(0.5, 12)
        self.quality[manifest.version] = quality
        self.world.deliver(manifest)
        self.world.writes_left, *self.world.next_lives = lives or [None]
        self.everybody_lives(1.0, turns)

    @rule(gain=st.sampled_from((-0.3, 0.3)), turns=st.integers(0, 25), lives=st.lists(st.integers(0, 30), max_size=3))
    def traffic_of_before_comes_back(self, gain: float, turns: int, lives: list[int]) -> None:
        """Held-out scores fall, an idle trainer is asked to score earlier drafts, and answers; a leader may die."""
        world = self.world
        for _ in range(2):
            if not world.leader.fleet.pool:
                self.a_rollout_runs_its_course(0.8, 25, [], False)
        for shadow in (2.0, 1.9, 1.1, 1.0, 1.1):
            world.trainer_reads()
            world.deliver(world.trainer_reports("waiting", shadow))
        world.writes_left, *world.next_lives = lives or [None]
        for _ in range(2):
            world.trainer_reads()
            world.deliver(world.trainer_reports("waiting", gain=gain))
        self.everybody_lives(1.0, turns)

    @precondition(lambda self: self.world.manifests)
    @rule(data=st.data())
    def a_manifest_is_read_again(self, data: st.DataObject) -> None:
        """Every leader reads all of them anew."""
        version = data.draw(st.sampled_from(sorted(self.world.manifests)))
        self.world.deliver(self.world.manifests[version])

    def _report(self, name: str, seconds: float, lost: bool) -> None:
        world = self.world
        report = world.node_reports(name, self.quality[world.nodes[name].version], seconds)
        if not lost:
            world.count_delivered(report)
            world.deliver(report)

    # What always holds

    @invariant()
    def the_policy_is_sound_and_bounded(self) -> None:
        leader = self.world.leader
        leader.check_invariants()
        assert len(leader.pending) <= 16
        assert len(leader.fleet.judged) <= 256 and len(leader.fleet.refused) <= 256
        assert len(leader.fleet.pool) <= SETTINGS.pool_size
        assert {past.version for past in leader.fleet.pool} <= set(self.world.passed)
        move = self.world.newest_move()
        assert move is not None and leader.fleet == move.fleet, "the journal does not hold the fleet's state"
        kept, now = move.collection, leader.collection
        assert kept is not None and (kept.wanted, kept.shifted) == (now.wanted, now.shifted)

    @invariant()
    def what_was_written_makes_sense(self) -> None:
        """Looks at the entries since the last step."""
        for entry in self.world.journal[self.num_seen :]:
            for item in entry.instructions:
                assert item.reason and item.cause
                assert all(math.isfinite(number) for number in item.numbers.values())
                if "cannot run version" in item.reason:
                    assert any(each in item.reason for each in self._cannot_have()), item.reason
                if isinstance(item, SetServer):
                    self._check_server(item)
                if isinstance(item, SetServer | SetTrainer):
                    self._check_generation(item)
        self.num_seen = len(self.world.journal)
        judged = self.world.judged()
        assert len(judged) == len(set(judged)), "a version was judged twice"

    @invariant()
    def candidates_stay_on_their_canary(self) -> None:
        """Among what stands on the bus, a draft that has not passed is asked of one node at most."""
        world = self.world
        asked: dict[int, list[str]] = {}
        for name, standing in world.desired.items():
            if isinstance(standing.instruction, SetServer):
                asked.setdefault(standing.instruction.draft_version, []).append(name)
        for version, where in asked.items():
            assert version in {NO_DRAFT, *world.passed} or len(where) == 1, f"version {version} is on {where}"
        fleet = world.leader.fleet
        assert fleet.serving_version in {NO_DRAFT, *world.passed}
        assert fleet.serving_version not in fleet.refused
        ran = {version for node in world.nodes.values() for version in node.chains}
        assert set(world.passed) - {NO_DRAFT} <= ran, "a version passed that no node was seen to run"
        if len(world.nodes) > 1:
            for version, seen in world.passed.items():
                excused = version == NO_DRAFT or version in world.passed_alone
                assert excused or seen >= SETTINGS.watch_min_steps, f"{version} after {seen} chains"

    @invariant()
    def nothing_journalled_is_lost(self) -> None:
        """What stands is at least as new as the journal; a leader that is alive has carried out all of it."""
        newest: dict[str, int] = {}
        for entry in self.world.journal:
            for item in entry.instructions:
                if isinstance(item, SetServer | SetTrainer):
                    newest[name_of(item)] = item.generation
        standing = {name: each.instruction.generation for name, each in self.world.desired.items()}
        assert standing == newest

    def _cannot_have(self) -> list[str]:
        """What is said of each draft that a node tried in vain often enough."""
        return [
            f"{node.name} cannot run version {version}: draft {version} is not on the bus"
            for node in self.world.nodes.values()
            for version, num_tries in node.num_failed.items()
            if num_tries >= SETTINGS.draft_max_tries
        ]

    def _check_server(self, item: SetServer) -> None:
        if item.draft_version == NO_DRAFT:
            assert item.draft_digest == "" and item.steps_table == ()
        else:
            assert item.draft_digest == self.world.manifests[item.draft_version].digest

    def _check_generation(self, item: SetServer | SetTrainer) -> None:
        name, content = name_of(item), _content(item)
        assert self.contents.setdefault((name, item.generation), content) == content, "a generation means two things"
        place = (self.world.token, item.generation)
        assert item.generation >= self.highest.get(name, (0, 0))[1]
        self.highest[name] = place

    # The end

    def teardown(self) -> None:
        try:
            self._ends_well()
        finally:
            self.limit.stop()

    def _ends_well(self) -> None:
        world = self.world
        world.writes_left, world.next_lives = None, []
        for node in world.nodes.values():
            node.engine, node.corrupts, node.trouble = "ready", False, ""
        for _ in range(90):
            world.at += 1.0
            for name, node in world.nodes.items():
                world.node_reads(name)
                node.swap()
                world.deliver(world.node_reports(name, self.quality[node.version], 1.0))
        for name, node in world.nodes.items():
            wanted, digest = rollout.draft_for(world.leader.fleet, name)
            standing = world.desired[name].instruction
            assert isinstance(standing, SetServer)
            assert (standing.draft_version, standing.draft_digest) == (wanted, digest)
            if wanted != NO_DRAFT:
                assert (node.version, node.digest) == (wanted, digest), f"{name} has not converged"
        for begin in (0, self.beginnings[-1]):
            outcome = replay(entry.maps() for entry in world.journal[begin:])
            assert outcome.difference is None and outcome.num_compared == len(world.journal) - begin


def _content(item: SetServer | SetTrainer) -> object:
    if isinstance(item, SetServer):
        captured = (item.collect, item.sample_rate, item.preferred, item.preferred_rate)
        return (item.draft_version, item.draft_digest, item.steps_table, *captured)
    return (item.round, item.serving_version, item.serving_digest, item.pool, item.pool_scoring)


FleetMachine.TestCase.settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestFleetMachine = FleetMachine.TestCase

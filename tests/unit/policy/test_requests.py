"""What an operator asks is done by the one who decides, once, and written down with the reason."""

from dataclasses import replace

from tests.unit.policy.simulated_fleet import digest_of
from tide_daemon.policy.controller import Controller
from tide_daemon.policy.events import (
    CandidatePublished,
    ControllerStarted,
    FleetState,
    OperatorRequested,
    PastDraft,
    RequestScored,
    ServerReported,
    Tick,
)
from tide_daemon.policy.instructions import Answered, FleetMoved, Instruction, Judged, SetServer, SetTrainer
from tide_daemon.policy.settings import PolicySettings

SETTINGS = PolicySettings(max_batch_size=8, watch_s=5.0, rollout_deadline_s=30.0)
SERVED = FleetState(8, digest_of(8), 7, digest_of(7), judged=(7, 8))
AT = 1000.0


class Fleet:
    """A controller that leads two nodes, and a clock."""

    def __init__(self, fleet: FleetState = SERVED) -> None:
        self.at = AT
        self.controller = Controller(SETTINGS)
        self.controller.handle(ControllerStarted(self.at, "m", SETTINGS.to_map(), fleet))
        for node in ("a", "b"):
            self.report(node, fleet.serving_version)

    @property
    def state(self) -> FleetState:
        return self.controller.fleet

    def handle(self, event: object) -> list[Instruction]:
        instructions = self.controller.handle(event)  # type: ignore[arg-type]
        self.controller.check_invariants()
        return instructions

    def report(self, node: str, version: int) -> list[Instruction]:
        self.at += 1.0
        return self.handle(
            ServerReported(self.at, node, int(self.at), "ready", version, digest_of(version), 0, 1.0, ())
        )

    def ask(
        self, action: str, version: int = 0, request: str = "r1", age_s: float = 1.0
    ) -> tuple[Answered | None, list[Instruction]]:
        self.at += 1.0
        digest = digest_of(version) if version else ""
        event = OperatorRequested(self.at, request, self.at - age_s, "alice", action, version, digest, "because")
        instructions = self.handle(event)
        answers = [item for item in instructions if isinstance(item, Answered)]
        return (answers[0] if answers else None), instructions

    def publish(self, version: int) -> list[Instruction]:
        """A candidate that passes the gate."""
        self.at += 1.0
        scores = tuple(RequestScored(f"{index:016x}", "", 100, 150.0, 200.0 + index % 3) for index in range(40))
        return self.handle(
            CandidatePublished(self.at, version, digest_of(version), self.state.serving_version, "t", 9, 3, scores)
        )


def granted(answer: Answered | None, words: str) -> None:
    assert answer is not None and answer.granted and words in answer.reason and "alice" in answer.reason, answer


def refused(answer: Answered | None, words: str) -> None:
    assert answer is not None and not answer.granted and words in answer.reason, answer


def test_a_pin_holds_the_gate() -> None:
    """A better candidate waits, is not judged, and goes on once unpinned; the state says so to the next leader."""
    fleet = Fleet()
    answer, instructions = fleet.ask("pin")
    granted(answer, "version 8 stays")
    assert any(isinstance(item, FleetMoved) and item.fleet.pinned for item in instructions)
    assert not any(isinstance(item, SetServer | SetTrainer) for item in instructions)
    assert not any(isinstance(item, Judged) for item in fleet.publish(9))
    answer, instructions = fleet.ask("unpin", request="r2")
    granted(answer, "next candidate")
    assert any(isinstance(item, Judged) and item.verdict == "promote" for item in instructions)
    assert fleet.state.stage == "canary"
    refused(fleet.ask("unpin", request="r3")[0], "nothing is pinned")


def test_plain_decoding_can_be_pinned() -> None:
    """Before there is a draft: the first one waits."""
    fleet = Fleet(FleetState())
    granted(fleet.ask("pin")[0], "plain decoding stays")


def test_a_pin_ends_a_canary_without_judging_it() -> None:
    """The candidate leaves its canary; nothing is held against it."""
    fleet = Fleet()
    fleet.publish(9)
    assert fleet.state.stage == "canary"
    answer, instructions = fleet.ask("pin")
    granted(answer, "version 8 stays")
    assert fleet.state.stage == "steady" and 9 not in fleet.state.refused
    assert {item.draft_version for item in instructions if isinstance(item, SetServer)} == {8}


def test_pinning_another_version_brings_every_node_to_it() -> None:
    """As the last part of a rollout does, and back if a node cannot."""
    fleet = Fleet(replace(SERVED, refused=(5,)))
    answer, instructions = fleet.ask("pin", 5)
    granted(answer, "version 5")
    asked = {item.node: (item.draft_version, item.draft_digest) for item in instructions if isinstance(item, SetServer)}
    assert asked == {"a": (5, digest_of(5)), "b": (5, digest_of(5))}
    assert fleet.state.stage == "rest" and fleet.state.refused == ()
    fleet.report("a", 5)
    fleet.at += SETTINGS.rollout_deadline_s
    fleet.report("b", 8)
    fleet.handle(Tick(fleet.at))
    assert (fleet.state.serving_version, fleet.state.stage, fleet.state.pinned) == (8, "steady", True)


def test_roll_back() -> None:
    """To the draft before, once; without one nothing happens."""
    fleet = Fleet()
    answer, instructions = fleet.ask("roll_back")
    granted(answer, "from version 8 back to version 7")
    assert {item.draft_version for item in instructions if isinstance(item, SetServer)} == {7}
    assert fleet.state.refused == (8,)
    refused(fleet.ask("roll_back", request="r2")[0], "no other draft")


def test_roll_back_of_a_canary_is_the_candidate_s() -> None:
    """What is served stays."""
    fleet = Fleet()
    fleet.publish(9)
    granted(fleet.ask("roll_back")[0], "version 9 was taken off its canary")
    assert (fleet.state.serving_version, fleet.state.refused) == (8, (9,))


def test_forget() -> None:
    """A version that nothing needs is never served again; one in use is not forgotten."""
    fleet = Fleet()
    refused(fleet.ask("forget", 8, "r1")[0], "it is served")
    refused(fleet.ask("forget", 7, "r2")[0], "a rollback would go there")
    granted(fleet.ask("forget", 9, "r3")[0], "not served again")
    assert not any(isinstance(item, Judged) for item in fleet.publish(9))


def test_each_request_is_answered_once_and_in_time() -> None:
    """A new leader reads them again: what was answered stays so, and what is old is not done any more."""
    fleet = Fleet()
    fleet.ask("pin")
    fleet.ask("unpin", request="r2")
    assert fleet.ask("pin") == (None, [])
    successor = Fleet(fleet.state)
    assert successor.ask("roll_back", request="r2") == (None, [])
    refused(successor.ask("roll_back", request="r3", age_s=601.0)[0], "601 s ago")
    assert successor.state.serving_version == 8


def test_a_forgotten_version_is_not_tried_again_from_the_pool() -> None:
    """It leaves the pool at once, and trainers are not told to hold it."""
    past = PastDraft(5, digest_of(5), (("code", 2.0),), outdated=True, settled=True, served_until=0.0)
    fleet = Fleet(replace(SERVED, judged=(5, 7, 8), pool=(past,)))
    answer, _ = fleet.ask("forget", 5)
    assert answer is not None and answer.granted
    assert fleet.state.pool == () and 5 in fleet.state.refused


def test_a_pinned_draft_that_replaced_another_leaves_that_one_to_be_tried_again() -> None:
    """Going to an earlier version by hand is a change of drafts like any other."""
    past = PastDraft(5, digest_of(5), (("code", 2.0),), outdated=True, settled=True, served_until=0.0)
    fleet = Fleet(replace(SERVED, judged=(5, 7, 8), pool=(past,)))
    fleet.ask("pin", 5)
    assert fleet.state.serving_version == 5 and fleet.state.pinned
    assert 5 not in {each.version for each in fleet.state.pool}
    assert 8 in {each.version for each in fleet.state.pool}

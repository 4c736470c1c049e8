"""Explanations of journals that the real policy made: the sentence names the real cause and the real numbers."""

import random
from dataclasses import replace

import pytest

from tests.unit.policy.pool_world import FLEET, World, past, scored
from tests.unit.policy.simulated_fleet import Fleet, ModelledNode, digest_of, one_node, step_s
from tide_daemon.policy.events import (
    CandidatePublished,
    ControllerStarted,
    Event,
    OperatorRequested,
    RequestScored,
    ServerFound,
    ServerReported,
    Tick,
    TrainerReported,
    WorkloadServed,
    event_to_map,
)
from tide_daemon.policy.instructions import Answered, FleetMoved, instruction_to_map
from tide_daemon.policy.settings import PolicySettings
from tide_daemon.policy.why.decision import why_decision
from tide_daemon.policy.why.fleet import why_fleet
from tide_daemon.policy.why.history import Decided, History
from tide_daemon.policy.why.node import live, why_node
from tide_daemon.policy.why.trainer import why_trainer
from tide_daemon.policy.why.version import why_version
from tide_daemon.policy.why.words import ago, clock, steps_words


def history_of(fleet: Fleet) -> History:
    history = History()
    for sequence, (event, made) in enumerate(fleet.entries, start=1):
        maps = [instruction_to_map(item) for item in made]
        history.add(Decided.from_maps(event.at, sequence, 7, "first", event_to_map(event), maps))
    return history


def node_text(fleet: Fleet, **more: object) -> str:
    return "\n".join(why_node(history_of(fleet), "node-a", fleet.at, **more))  # type: ignore[arg-type]


def version_text(fleet: Fleet, version: int) -> str:
    return "\n".join(why_version(history_of(fleet), version, fleet.at))


def test_without_a_draft_it_says_what_is_missing() -> None:
    """Day 0, and after a candidate that had too few requests."""
    fleet = one_node(lambda v, t: 0.0, lambda t: 4)
    fleet.run(5)
    assert "There is no draft to speculate with: none is served." in node_text(fleet)
    assert "No candidate was published yet." in node_text(fleet)
    fleet.publish(1, 1.5, num_requests=3)
    assert "version 1, was left undecided at" in node_text(fleet)
    assert "8 and 300 are needed" in node_text(fleet)


def test_a_good_draft_speculates_and_says_from_when_it_would_not() -> None:
    """The accept length at which it pays is the one that the modelled costs have."""
    fleet = one_node(lambda v, t: 0.75 if v else 0.0, lambda t: 4)
    fleet.run(20)
    fleet.publish(1, 2.6)
    fleet.run(60)
    text = node_text(fleet)
    steps = fleet.controller.asked["node-a"].steps_table
    assert f"It is asked for {steps_words(steps)}." in text
    assert "of plain" in text and " chains" in text
    num = next(k for largest, k in steps if largest >= 4)
    true_even = step_s(4, num) / step_s(4, 0)
    said = float(text.split("it pays from ")[1].split(".\n")[0])
    assert said == pytest.approx(true_even, rel=0.04)
    assert "It is switched off when the accept length falls below" in text
    assert f"with {num} steps at batch 4 over" in text


def test_a_stale_draft_is_off_and_says_from_when_it_would_be_on() -> None:
    """Off because of the ratio; on from 1.05 of plain."""
    fleet = one_node(lambda v, t: (0.75 if t < 1060 else 0.1) if v else 0.0, lambda t: 4)
    fleet.run(20)
    fleet.publish(1, 2.6)
    fleet.run(80)
    asked = fleet.controller.asked["node-a"]
    text = node_text(fleet)
    assert f"It is asked for {steps_words(asked.steps_table)}." in text
    assert " to 0 steps at batch 4" in text
    even = float(text.split("it pays from ")[1].split(".\n")[0])
    on = float(text.split("It is switched on from ")[1].split(" ")[0])
    assert on == pytest.approx(1.05 * even, abs=0.02)


def test_a_probe_is_called_one() -> None:
    """While it lasts."""
    fleet = one_node(lambda v, t: 0.3 if v else 0.0, lambda t: 4, probe_min_ratio=0.0)
    fleet.run(20)
    fleet.publish(1, 1.6)
    for _ in range(20):
        fleet.run(1)
        if fleet.controller.speculation["node-a"].probe is not None:
            break
    text = node_text(fleet)
    assert "trying " in text and "That is a probe" in text
    assert "switched off when" not in text


def test_a_guess_is_called_one() -> None:
    """A successor keeps what it found in force until it has seen enough to choose anew."""
    fleet = one_node(lambda v, t: 0.75 if v else 0.0, lambda t: 4)
    fleet.run(20)
    fleet.publish(1, 2.6)
    fleet.run(60)
    history = history_of(fleet)
    at, figures = history.nodes["node-a"].figures or (0.0, {})
    history.nodes["node-a"].figures = (at, {**figures, "evidence": 3.0})
    text = "\n".join(why_node(history, "node-a", fleet.at))
    assert "That is a guess: 3 chains were seen lately, 80 are needed to choose anew; serving will bring them." in text
    assert "That is a guess" not in node_text(fleet)


def test_desired_state_and_reports_of_the_bus_are_believed_first() -> None:
    """A node that does not swap, one that is silent, one whose engine is down."""
    fleet = one_node(lambda v, t: 0.75 if v else 0.0, lambda t: 4)
    fleet.run(20)
    fleet.publish(1, 2.6)
    fleet.run(30)
    stuck = ServerReported(fleet.at, "node-a", 99, "down", 0, "", 1, 1.0, ())
    wanted = ServerFound(fleet.at, "node-a", 9, 2, digest_of(2), ((4, 3),), True, 1.0)
    text = node_text(fleet, desired=wanted, report=stuck)
    assert "engine down, heard of just now, runs no draft and is asked to run version 2: it has not swapped yet" in text
    assert "3 drafted tokens a step up to batch 4, plain above" in text
    assert "Its engine is down" in text
    silent = "\n".join(why_node(history_of(fleet), "node-a", fleet.at + 43))
    assert "heard of 43 s ago, so it is left out of every decision (limit 15 s)" in silent


def test_unknown_names_are_said_so() -> None:
    fleet = one_node(lambda v, t: 0.0, lambda t: 4)
    history = history_of(fleet)
    assert why_node(history, "nobody", fleet.at) == ["nobody: this journal knows no such server node."]
    assert why_version(history, 9, fleet.at) == ["Version 9: this journal knows no such version."]
    seen = ServerReported(fleet.at, "new", 1, "ready", 0, "", 0, 1.0, ())
    assert "Nothing was asked of it yet" in why_node(history, "new", fleet.at, report=seen)[-1]


def test_capture_is_explained() -> None:
    fleet = one_node(lambda v, t: 0.0, lambda t: 4)
    fleet.run(2)
    assert "It captures 100% of requests since" in node_text(fleet)
    assert ": no draft is served yet." in node_text(fleet)


def test_a_promoted_draft_tells_its_story() -> None:
    """Gate, canary, rest, watch, in that order, with the numbers of each."""
    fleet = one_node(lambda v, t: 0.75 if v else 0.0, lambda t: 4)
    fleet.run(20)
    fleet.publish(1, 2.6)
    assert version_text(fleet, 1).startswith("Version 1: on its canary node-a since ")
    assert "It goes to the other nodes when node-a has shown 200 chains" in version_text(fleet, 1)
    fleet.run(12)
    assert ": served, and watched since" in version_text(fleet, 1).splitlines()[0]
    assert "It is kept if nothing drops or fails in another" in version_text(fleet, 1)
    fleet.run(60)
    text = version_text(fleet, 1)
    assert text.startswith("Version 1: served.")
    places = [text.index(words) for words in ("promoted by the gate: gain +", "canary of version 1 passed", "held for")]
    assert places == sorted(places)
    assert "lower_bound" in text


def test_refused_drafts_say_what_it_takes() -> None:
    """Worse than the one served; too few requests; scored against another draft."""
    fleet = one_node(lambda v, t: 0.75 if v else 0.0, lambda t: 4)
    fleet.run(20)
    fleet.publish(1, 2.6)
    fleet.run(60)
    fleet.publish(2, 2.2, serving=2.6)
    assert version_text(fleet, 2).startswith("Version 2: refused.")
    assert (
        "Its gain had to be above 0, and at least +0.0000 at the lower end of 90% confidence; that was -0.4"
        in version_text(fleet, 2)
    )
    fleet.publish(3, 2.8, serving=2.6, num_requests=4)
    assert "It takes 8 held-out requests with 300 positions; there were" in version_text(fleet, 3)
    event = replace(next(e for e, _ in fleet.entries if getattr(e, "version", 0) == 3), at=fleet.at, version=4,
                    parent_version=9)  # type: ignore[call-arg]  # fmt: skip
    fleet.give(event)
    assert "scored against version 9 while 1 is served" in version_text(fleet, 4)
    assert "has to be scored against the draft that is served" in version_text(fleet, 4)


def test_a_rolled_back_draft_says_why() -> None:
    """Good offline, bad live."""
    fleet = one_node(lambda v, t: {0: 0.0, 1: 0.75, 2: 0.2}[v], lambda t: 4)
    fleet.run(20)
    fleet.publish(1, 2.6)
    fleet.run(60)
    fleet.publish(2, 3.0, serving=2.6)
    fleet.run(60)
    text = version_text(fleet, 2)
    assert text.startswith("Version 2: rolled back, and not tried again.")
    assert "failed, rolled back: node-a: live accept length fell from" in text
    assert "A version is tried once." in text
    assert version_text(fleet, 1).startswith("Version 1: served.")


def test_a_candidate_waits_while_a_canary_is_under_way() -> None:
    nodes = [
        ModelledNode(n, lambda v, t: 0.6 if v else 0.0, lambda t: 4, random.Random(1)) for n in ("node-a", "node-b")
    ]
    fleet = Fleet(nodes)
    fleet.run(20)
    fleet.publish(1, 2.2)
    fleet.publish(2, 2.4)
    text = version_text(fleet, 2)
    assert text.startswith("Version 2: published, and waiting for the gate.")
    assert "when no draft is on its canary or being brought to the other nodes (the stage is canary)" in text


def test_a_trainer_says_what_it_waits_for() -> None:
    """Day 0, after a promotion, during a canary, and one that is silent."""
    fleet = one_node(lambda v, t: 0.75 if v else 0.0, lambda t: 4)
    fleet.tokens_per_s = 100
    fleet.run(20)

    def text(later_s: float = 0.0) -> str:
        return "\n".join(why_trainer(history_of(fleet), "trainer", fleet.at + later_s))

    assert text().startswith("trainer: waiting in round 0, 2,000 new response tokens, heard of now.")
    assert "The next round begins at 3,000 new tokens: there is no draft yet." in text()
    fleet.publish(1, 2.6)
    assert "No round begins while a draft is being rolled out (the stage is canary)." in text()
    fleet.run(60)
    assert "It was asked for round 1 at" in text() and "8000 new response tokens, 8000 wanted" in text()
    assert "The next round" not in text()
    fleet.run(5)
    assert "The next round begins at 8,000 new tokens, at 2,000 when a shift" in text()
    assert "heard of 60 s ago, so it is left out (limit 15 s)" in text(60.0)
    assert why_trainer(History(), "x", 0.0) == ["x: this journal knows no such trainer."]


def test_every_decision_has_a_cause_and_its_numbers() -> None:
    """All decisions of a run in words; a verdict is not said twice, copies of the state not at all."""
    fleet = one_node(lambda v, t: 0.75 if v else 0.0, lambda t: 4)
    fleet.tokens_per_s = 200
    fleet.run(20)
    fleet.publish(1, 2.6)
    fleet.run(130)
    history = history_of(fleet)
    texts = ["\n".join(why_decision(entry)) for entry in history.decisions]
    assert len(texts) == sum(entry.is_decision for entry in history.decisions) > 10
    assert all(" when " in text and len(text.splitlines()) >= 2 for text in texts)
    assert not any("the copy of the state" in text for text in texts)
    (judged,) = [text for text in texts if "was promoted" in text]
    assert "when version 1 was published by trainer:" in judged and judged.count("gain +1.") == 1
    assert any(
        "trainer is asked for round 1 against version 0, because: round 1: there is no draft yet" in t for t in texts
    )
    text = "\n".join(why_fleet(history, fleet.at))
    assert text.startswith("Version 1 is served; nothing is being rolled out since")
    assert "node-a: version 1, " in text


def test_a_new_reign_begins_from_what_was_asked() -> None:
    """Desired state found again is not a change, and settings are the newest reign's."""
    fleet = one_node(lambda v, t: 0.75 if v else 0.0, lambda t: 4)
    fleet.run(20)
    fleet.publish(1, 2.6)
    fleet.run(60)
    history, asked = history_of(fleet), fleet.controller.asked["node-a"]
    settings = PolicySettings(max_batch_size=8, lost_after_s=99.0)
    history.add(
        Decided(
            fleet.at, 1, 8, "second", ControllerStarted(fleet.at, "m", settings.to_map(), fleet.controller.fleet), ()
        )
    )
    found = ServerFound(fleet.at, "node-b", 5, 1, digest_of(1), ((4, 2),), True, 1.0)
    history.add(Decided(fleet.at, 2, 8, "second", found, ()))
    assert history.settings.lost_after_s == 99.0 and history.leader == "second"
    assert "2 drafted tokens a step up to batch 4" in "\n".join(why_node(history, "node-b", fleet.at))
    assert history.nodes["node-a"].asked is not None
    assert history.nodes["node-a"].asked[1].steps_table == asked.steps_table


def test_live_figures_are_of_the_running_draft_only() -> None:
    """Reports under another version, or older than a minute, do not count."""
    fleet = one_node(lambda v, t: 0.75 if v else 0.0, lambda t: 4)
    fleet.run(20)
    fleet.publish(1, 2.6)
    fleet.run(40)
    reports = list(history_of(fleet).nodes["node-a"].reports)
    seen = live(reports)
    assert seen is not None and seen.batch_size == 4 and seen.num_steps > 0
    expected = 1 + sum(0.75**i for i in range(1, seen.num_steps + 1))
    assert seen.accept_length == pytest.approx(expected, rel=0.1)
    assert live([replace(reports[-1], running_version=3)]) is not None
    assert live([*reports, replace(reports[-1], running_version=3, steps=())]) is None
    assert live([]) is None


def test_earlier_drafts_and_workloads_are_explained() -> None:
    """A workload comes back: what is known of it, who was asked for what, and what became of the earlier draft."""
    world = World(replace(FLEET, pool=(past(3, code=2.4), past(5, chat=1.9))))
    world.node(workloads=(WorkloadServed("code", 40, 90), WorkloadServed("poems", 10, 12)))
    for _ in range(6):
        world.trainer(2.1, workload="code")
    world.trainer(pool=(scored(3, 0.4), scored(5, -0.2)))
    history = History()
    for sequence, (event, made) in enumerate(world.entries, start=1):
        maps = [instruction_to_map(item) for item in made]
        history.add(Decided.from_maps(event.at, sequence, 7, "first", event_to_map(event), maps))
    fleet = "\n".join(why_fleet(history, world.at))
    assert "Version 5 is kept to be tried again, served until" in fleet and "chat 1.90" in fleet
    assert "code: 100% of what was scored lately, held-out accept length 2.10 (24 requests so far)" in fleet
    assert "(24 requests so far), live accept length 2.25 over 40 chains; version 3 had" in fleet
    assert "poems: live accept length 1.20 over 10 chains." in fleet
    third = "\n".join(why_version(history, 3, world.at))
    assert "Version 3: on its canary a since" in third and "Tried again, " in third
    assert third.count("gain +0.4") == 1
    fifth = "\n".join(why_version(history, 5, world.at))
    assert "served before, and kept to be tried again when its traffic comes back" in fifth
    decided = "\n".join(line for entry in history.decisions for line in why_decision(entry))
    assert "t is asked to score earlier drafts (3, 5) against version 9, because:" in decided
    assert "version 3, served before, was promoted:" in decided and "version 5, served before, was refused:" in decided


def test_words() -> None:
    assert steps_words(()) == steps_words(((8, 0),)) == "plain decoding at every batch size"
    assert steps_words(((2, 0), (3, 1), (8, 3))) == (
        "plain up to batch 2, 1 drafted token a step at batch 3, 3 drafted tokens a step from batch 4 to 8, plain above"
    )
    assert [ago(1000.0 - s, 1000.0) for s in (0, 5, 150, 10_000, 200_000)] == [
        "now", "5 s ago", "2 minutes ago", "3 hours ago", "2 days ago",
    ]  # fmt: skip
    assert clock(0.0) == "1970-01-01 00:00:00 UTC"


def test_an_entry_without_a_decision_is_none() -> None:
    assert not Decided(1.0, 1, 1, "x", Tick(1.0), ()).is_decision
    with pytest.raises(ValueError):
        Decided.from_maps(1.0, 1, 1, "x", {"event": "nothing"}, [])


def test_a_draft_that_its_canary_cannot_have() -> None:
    """While it is tried, by node; afterwards, by version, with what the node said."""
    fleet = one_node(lambda v, t: 0.75 if v else 0.0, lambda t: 4)
    fleet.run(20)
    fleet.nodes[0].cannot_have = frozenset({1})
    fleet.publish(1, 2.6)
    fleet.run(2)
    assert "is asked to run version 1: it cannot, draft 1 is gone." in node_text(fleet)
    assert "3 times in a row why it cannot" in version_text(fleet, 1)
    fleet.run(2)
    text = version_text(fleet, 1)
    assert "rolled back, and not tried again" in text
    assert "canary of version 1 failed, rolled back: node-a cannot run version 1: draft 1 is gone (num_tries 3)" in text


def asked_for(fleet: Fleet, action: str, version: int = 0) -> None:
    fleet.at += 1.0
    digest = digest_of(version)
    fleet.give(OperatorRequested(fleet.at, f"r{fleet.at:.0f}", fleet.at, "alice", action, version, digest, ""))


def test_a_candidate_that_a_pin_took_off_its_canary() -> None:
    """It was never served, and no earlier draft is told to have been."""
    fleet = one_node(lambda v, t: 0.75 if v else 0.0, lambda t: 4)
    fleet.run(20)
    fleet.publish(1, 2.6)
    asked_for(fleet, "pin")
    assert fleet.controller.fleet.stage == "steady" and not fleet.controller.fleet.refused
    text = version_text(fleet, 1)
    assert text.startswith("Version 1: promoted by the gate, and taken off its canary before it was served.")
    (answered,) = fleet.instructions(Answered)
    assert isinstance(answered, Answered)
    assert "version 1 was taken off its canary node-a" in answered.reason
    asked = text + "\n".join(line for entry in history_of(fleet).decisions for line in why_decision(entry))
    assert "taken off its canary node-a" in asked


def test_a_draft_that_an_operator_brought_in_passed_no_canary() -> None:
    """Pinned to: every node is brought to it at once. Rolled back from, or forgotten, it did not fail of itself."""
    fleet = one_node(lambda v, t: 0.75 if v else 0.0, lambda t: 4)
    fleet.run(20)
    for version, length in ((1, 2.0), (2, 2.6)):
        fleet.publish(version, length, serving=1.0 if version == 1 else 2.0)
        fleet.run(90)
    assert fleet.controller.fleet.serving_version == 2
    asked_for(fleet, "pin", 1)
    assert version_text(fleet, 1).startswith("Version 1: every node is being brought to it since ")
    fleet.run(90)
    asked_for(fleet, "unpin")
    asked_for(fleet, "forget", 7)
    assert version_text(fleet, 7).startswith("Version 7: forgotten by an operator, and not tried again.")


def test_a_candidate_on_its_canary_is_said_to_have_passed_it() -> None:
    """Every node is being brought to it after that."""
    nodes = [
        ModelledNode(n, lambda v, t: 0.6 if v else 0.0, lambda t: 4, random.Random(1)) for n in ("node-a", "node-b")
    ]
    fleet = Fleet(nodes)
    fleet.run(20)
    fleet.publish(1, 2.2)
    while fleet.controller.fleet.stage == "canary":
        fleet.run(1)
    assert fleet.controller.fleet.stage == "rest"
    assert version_text(fleet, 1).startswith("Version 1: passed its canary; every node is being brought to it since ")


def test_a_version_that_waits_while_it_is_pinned() -> None:
    """Nothing is tried then, whatever nodes are ready."""
    fleet = one_node(lambda v, t: 0.75 if v else 0.0, lambda t: 4)
    fleet.run(20)
    asked_for(fleet, "pin")
    fleet.publish(1, 2.6)
    text = version_text(fleet, 1)
    assert "The gate answers when an operator has unpinned what is served" in text


def test_a_draft_that_one_workload_would_lose_by() -> None:
    """Its gain was enough; what it takes is about the part that would lose."""
    fleet = one_node(lambda v, t: 0.75 if v else 0.0, lambda t: 4)
    fleet.run(20)
    fleet.publish(1, 2.6)
    fleet.run(60)
    workloads = [("code", 350.0), ("chat", 150.0)] * 20
    scores = tuple(
        RequestScored(f"{index:016x}", workload, 100, 200.0 + index, tokens)
        for index, (workload, tokens) in enumerate(workloads)
    )
    fleet.give(CandidatePublished(fleet.at, 2, digest_of(2), 1, "trainer", 0, 3, scores))
    text = version_text(fleet, 2)
    assert "chat would lose" in text
    assert "Its gain was enough, but chat may lose at most 5% of its accept length. A version is judged once" in text
    assert "Its gain had to be" not in text


def test_a_probe_that_ended_with_the_same_steps() -> None:
    """Nothing is asked anew then, so the newest reason is the probe's; it is long over."""
    fleet = one_node(lambda v, t: 0.75 if v else 0.0, lambda t: 4, max_steps=1, plain_interval_s=1000.0)
    fleet.run(20)
    fleet.publish(1, 1.75)
    fleet.run(90)
    since = history_of(fleet).nodes["node-a"].steps_since
    assert since is not None and "trying" in since[1].reason
    assert fleet.controller.speculation["node-a"].probe is None
    text = node_text(fleet)
    assert "That was a probe, and the steps chosen after it are the same." in text
    assert "It is switched off when" in text and "It is switched on from" not in text


def test_a_probe_that_is_over_is_not_called_one() -> None:
    """The draft changes while it lasts: the steps are chosen anew, and the reason is not the probe's."""
    fleet = one_node(lambda v, t: 0.3 if v else 0.0, lambda t: 4, probe_min_ratio=0.0)
    fleet.run(20)
    fleet.publish(1, 1.6)
    while fleet.controller.speculation["node-a"].probe is None:
        fleet.run(1)
    asked_for(fleet, "roll_back")
    assert "That is a probe" not in node_text(fleet)


def trainer_text(fleet: Fleet | World, name: str) -> str:
    history = History()
    for sequence, (event, made) in enumerate(fleet.entries, start=1):
        maps = [instruction_to_map(item) for item in made]
        history.add(Decided.from_maps(event.at, sequence, 7, "first", event_to_map(event), maps))
    return "\n".join(why_trainer(history, name, fleet.at))


def test_a_trainer_that_scores_earlier_drafts_or_answers_a_shift() -> None:
    """No round begins before the scores are there; after a shift fewer tokens are enough."""
    world = World()
    world.trainer()
    assert "The next round begins at 8,000 new tokens, at 2,000 when a shift" in trainer_text(world, "t")
    world.shift()
    assert world.scoring
    assert "No round begins before earlier drafts are scored" in trainer_text(world, "t")
    world.trainer(pool=(scored(3, -0.2), scored(5, -0.2)))
    assert not world.scoring and world.controller.collection.shifted
    assert "The next round begins at 2,000 new tokens: the traffic has shifted." in trainer_text(world, "t")


def test_a_trainer_waits_while_another_is_in_a_round() -> None:
    """One round at a time."""
    fleet = one_node(lambda v, t: 0.0, lambda t: 4)
    fleet.run(2)
    other = TrainerReported(fleet.at, "other", 1, "training", 0, 0, 0, 1)
    fleet.give(other)
    assert "No round begins while other is in one, 1800 s at most." in trainer_text(fleet, "trainer")
    fleet.at += 16.0
    fleet.run(1)
    assert "The next round begins at 3,000 new tokens" in trainer_text(fleet, "trainer")


def test_a_first_round_takes_no_more_than_a_later_one() -> None:
    fleet = one_node(lambda v, t: 0.0, lambda t: 4, train_min_tokens=1000)
    fleet.run(2)
    assert "The next round begins at 1,000 new tokens: there is no draft yet." in trainer_text(fleet, "trainer")


def test_what_is_kept_is_bounded() -> None:
    """Names of pods and versions pass by for months; what is in use stays, and of the rest the newest."""
    history = History()
    pool = (past(3), past(5))
    fleet = replace(FLEET, serving_version=9, previous_version=7, pool=pool)
    history.add(Decided(1.0, 1, 7, "first", ControllerStarted(1.0, "m", PolicySettings().to_map(), fleet), ()))
    for index in range(1, 5000):
        at, pod = 1.0 + index, f"pod-{index}"
        events: list[Event] = [
            CandidatePublished(at, index, digest_of(index), 0, "t", 0, 3, ()),
            ServerReported(at, pod, 1, "ready", 0, "", 0, 1.0, ()),
            ServerReported(at, "stays", index, "ready", 0, "", 0, 1.0, ()),
            TrainerReported(at, pod, 1, "waiting", 0, 0, 0, 0),
        ]
        moved = FleetMoved(replace(fleet, stage=("watch", "steady")[index % 2]), "", "it moved", {})
        for event in events:
            history.add(Decided(at, index, 7, "first", event, (moved,)))
    assert len(history.versions) <= 300 and {3, 5, 7, 9, 4999} <= set(history.versions)
    assert len(history.versions[9].moves) <= 200
    assert len(history.nodes) == len(history.trainers) == 4096
    assert {"stays", "pod-4999"} <= set(history.nodes) and len(history.nodes["stays"].reports) > 100

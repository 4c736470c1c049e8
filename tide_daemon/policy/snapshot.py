"""The controller's state for people (plain types), and its invariants as code. Reads only."""

from typing import TYPE_CHECKING, Any

from tide_daemon.policy import rollout
from tide_daemon.policy.asked import Asked
from tide_daemon.policy.events import NO_DRAFT
from tide_daemon.policy.plain import to_plain

if TYPE_CHECKING:
    from tide_daemon.policy.controller import Controller


def state_map(controller: "Controller") -> dict[str, Any]:
    """Fleet, nodes, trainers, collection and waiting candidates, as a status page shows them."""
    return {
        "at": controller.now,
        "fleet": to_plain(controller.fleet),
        "nodes": {name: _node_map(controller, name) for name in sorted(controller.nodes)},
        "trainers": {name: _trainer_map(controller, name) for name in sorted(controller.trainers.by_name)},
        "collection": to_plain(controller.collection),
        "workloads": {name: to_plain(figure) for name, figure in controller.workloads.figures.items()},
        "pool_try": "" if controller.pool_try.under_way is None else controller.pool_try.reason,
        "pending": [candidate.version for candidate in controller.pending],
    }


def check_invariants(controller: "Controller") -> None:
    """Raise AssertionError when an invariant of Controller's docstring does not hold."""
    fleet = controller.fleet
    assert fleet.stage in (rollout.STEADY, rollout.CANARY, rollout.REST, rollout.WATCH)
    assert (fleet.stage == rollout.CANARY) == (fleet.candidate_version != NO_DRAFT) == (fleet.canary != "")
    assert (fleet.serving_version == NO_DRAFT) == (fleet.serving_digest == "")
    assert len(set(fleet.judged)) == len(fleet.judged), "a version was judged twice"
    earlier = [past.version for past in fleet.pool]
    assert earlier == sorted(set(earlier)) and len(earlier) <= controller.settings.pool_size
    assert not set(earlier) & {NO_DRAFT, fleet.serving_version, *fleet.refused}, "the pool holds what it must not"
    for name, asked in controller.asked.items():
        if asked.draft_version == NO_DRAFT:
            assert asked.steps_table == (), f"{name} is to speculate without a draft"
        if controller.is_alive(name) and name not in controller.behind:
            assert (asked.draft_version, asked.draft_digest) == rollout.draft_for(fleet, name)
        if fleet.stage == rollout.CANARY and asked.draft_version == fleet.candidate_version:
            assert name == fleet.canary, "a candidate is on a node that is not the canary"
        edges = [edge for edge, _ in asked.steps_table]
        assert edges == sorted(set(edges)), f"{name} has an unordered steps table"
        assert all(0 <= num_steps <= controller.settings.max_steps for _, num_steps in asked.steps_table)
    for speculation in controller.speculation.values():
        assert speculation.account.credit_s <= controller.settings.probe_credit_s


def _node_map(controller: "Controller", name: str) -> dict[str, Any]:
    node, speculation = controller.nodes[name], controller.speculation[name]
    asked = controller.asked.get(name, Asked())
    return {
        "alive": controller.is_alive(name),
        "engine": node.engine,
        "running_version": node.running_version,
        "desired_version": asked.draft_version,
        "generation": asked.generation,
        "applied_generation": node.applied_generation,
        "steps_table": to_plain(asked.steps_table),
        "collect": asked.collect,
        "sample_rate": asked.sample_rate,
        "preferred": to_plain(asked.preferred),
        "num_implausible": node.num_implausible,
        "probe": speculation.probe.kind if speculation.probe is not None else "",
        "reason": speculation.reason,
        **speculation.numbers(),
    }


def _trainer_map(controller: "Controller", name: str) -> dict[str, Any]:
    trainer = controller.trainers.by_name[name]
    report = trainer.report
    return {
        "alive": controller.trainers.is_alive(name, controller.now),
        "state": "unknown" if report is None else report.state,
        "round": 0 if report is None else report.round,
        "desired_round": trainer.round,
        "new_tokens": 0 if report is None else report.new_tokens,
    }

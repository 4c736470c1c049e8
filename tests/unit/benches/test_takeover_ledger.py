"""The books of the takeover bench: each kind of loss and of doubling is found, and a clean run has none."""

from dataclasses import replace
from typing import Any

import pytest
from benches.takeover_ledger import Ledger

from tide_daemon.wire.records import Decision, DesiredServer, DesiredTrainer

FLEET = {"serving_version": 1}


def asked(generation: int, table: list[list[int]] | None = None) -> dict[str, Any]:
    return {"instruction": "set_server", "node": "a", "generation": generation, "draft_version": 1,
            "draft_digest": "d", "steps_table": table or [], "collect": True, "sample_rate": 1.0}  # fmt: skip


def trained(generation: int, round_: int) -> dict[str, Any]:
    return {"instruction": "set_trainer", "trainer": "t", "generation": generation, "round": round_,
            "serving_version": 1, "serving_digest": "d"}  # fmt: skip


def entry(token: int, sequence: int, *instructions: dict[str, Any], event: dict[str, Any] | None = None) -> Decision:
    return Decision(sequence, token, f"c{token}", 1.0, event or {"event": "tick"}, instructions, "", {})


def began(token: int, fleet: dict[str, Any] | None = FLEET, sequence: int = 1) -> Decision:
    return entry(token, sequence, event={"event": "controller_started", "fleet": fleet})


def server(generation: int, token: int, table: tuple[tuple[int, int], ...] = ()) -> DesiredServer:
    return DesiredServer("a", generation, token, 1.0, 1, "d", table, True, 1.0, "")


def trainer(generation: int, token: int, round_: int) -> DesiredTrainer:
    return DesiredTrainer("t", generation, token, 1.0, round_, 1, "d", "")


def clean() -> Ledger:
    """A takeover in which the successor carries out what its predecessor journalled last."""
    ledger = Ledger()
    moved = {"instruction": "fleet_moved", "fleet": FLEET}
    for each in (began(1), entry(1, 2, asked(1), moved), entry(1, 3, asked(2, [[4, 3]]), trained(1, 1)), began(2)):
        ledger.journalled(each)
    for record in (server(1, 1), server(2, 2, ((4, 3),)), trainer(1, 2, 1)):
        ledger.desired(record)
        ledger.taken(record)
    ledger.arrived(ledger.asked())
    return ledger


def test_a_clean_takeover_has_nothing_lost_or_doubled() -> None:
    ledger = clean()
    ledger.close()
    assert (+ledger.lost, +ledger.doubled) == ({}, {})
    assert (ledger.num_reigns, ledger.num_decisions) == (2, 2)


def test_losses_are_found() -> None:
    """A hole, a decision that did not arrive, one without explanation, a state that was not handed over."""
    ledger = clean()
    ledger.journalled(entry(2, 3, asked(3)))
    by_now = ledger.asked()
    ledger.arrived(by_now)
    ledger.arrived(by_now)
    assert +ledger.lost == {"a decision did not arrive": 1}
    ledger.desired(server(4, 2))
    ledger.desired(server(5, 1, ((8, 1),)))
    ledger.journalled(began(3, None))
    ledger.close()
    assert +ledger.lost == {
        "a decision did not arrive": 1,
        "a place is missing": 1,
        "a decision without an explanation": 2,
        "a state was not handed over": 1,
    }


@pytest.mark.parametrize("changed", [{"preferred": ("chat",)}, {"preferred_rate": 0.5}])
def test_preferred_workloads_are_content(changed: dict[str, Any]) -> None:
    """Other workloads to capture under the same generation: without explanation, and two contents."""
    ledger = clean()
    ledger.desired(replace(server(2, 2, ((4, 3),)), **changed))
    ledger.journalled(entry(2, 2, {**asked(2, [[4, 3]]), **changed}))
    ledger.close()
    assert +ledger.doubled == {"one generation of a node was asked for with two contents": 1}
    late = clean()
    late.desired(replace(server(2, 2, ((4, 3),)), **changed))
    late.close()
    assert +late.lost == {"a decision without an explanation": 1}


@pytest.mark.parametrize("changed", [{"pool": ((1, "d"),)}, {"pool_scoring": 3}, {"pool_requests": 8}])
def test_the_pool_is_content(changed: dict[str, Any]) -> None:
    """The same for what a trainer is asked to score."""
    ledger = clean()
    ledger.desired(replace(trainer(1, 2, 1), **changed))
    ledger.close()
    assert +ledger.lost == {"a decision without an explanation": 1}
    ledger.journalled(entry(2, 2, {**trained(1, 1), **changed}))
    assert +ledger.doubled == {"one generation of a node was asked for with two contents": 1}


def test_doubling_is_found() -> None:
    """A place twice, two leaders at once, a second verdict, two contents, a late write that stands or is taken."""
    ledger = clean()
    ledger.journalled(entry(1, 3))
    ledger.journalled(entry(1, 4, asked(9)))
    verdict = {"instruction": "judged", "version": 7}
    ledger.journalled(entry(2, 2, verdict, asked(2, [[4, 2]])))
    ledger.journalled(entry(2, 3, verdict))
    late = replace(server(3, 2), fencing_token=1)
    ledger.desired(late)
    ledger.taken(late)
    assert +ledger.doubled == {
        "a place is taken twice": 1,
        "two led at once": 2,
        "a version was judged twice": 1,
        "one generation of a node was asked for with two contents": 1,
        "a late write stands": 1,
        "a reader took it": 1,
    }

"""The page of faults says what was seen and nothing else."""

from dataclasses import replace

from fault_runs import page
from fault_runs.outcome import Outcome
from fault_runs.table import FAULTS


def test_the_page_is_what_was_seen() -> None:
    """Nobody has changed one without the other."""
    assert page.text(page.read()) == page.PAGE.read_text()


def test_the_newest_run_counts_but_none_without_clients_replaces_one_with_them() -> None:
    """Else a pass without clients would hide what clients saw."""
    first = Outcome("broker-killed", "modelled", "a", "1")
    real = Outcome("broker-killed", "sglang", "b", "2")
    again = Outcome("broker-killed", "modelled", "c", "3")
    skipped = Outcome("broker-killed", "sglang", "d", "4", not_run="no time")
    assert page.merged({}, [first, real])["broker-killed"]["commit"] == "b"
    assert page.merged({}, [first, real, again, skipped])["broker-killed"]["commit"] == "b"
    assert page.merged({}, [first, again])["broker-killed"]["commit"] == "c"


def test_a_row_that_was_not_run_says_so_and_one_that_failed_says_why() -> None:
    """A pass is told only of a row that passed."""
    good = Outcome("broker-killed", "sglang", "abcdef1234", "2026-01-01 00:00", client_errors=0, client_requests=9,
                   recovered=True, recovery_s=2.0, reported=True)  # fmt: skip
    bad = Outcome("sglang-killed", "sglang", "abcdef1234+", "2026-01-01 00:00", broken=["it did not come back"])
    quiet = replace(good, name="requests-500-at-once", reported=None)
    text = page.text({each.name: each.to_map() for each in (good, bad, quiet)})
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert "| pass | 0 of 9 |" in lines["broker-killed"] and "abcdef1 |" in lines["broker-killed"]
    assert "| **fail** |" in lines["sglang-killed"] and "abcdef1+" in lines["sglang-killed"]
    assert "| yes | sglang |" in lines["broker-killed"] and "|  | sglang |" in lines["requests-500-at-once"]
    assert "it did not come back" in text
    assert sum("| not run |" in line for line in lines.values()) == len(FAULTS) - 3

"""The table of faults, and what `ops/faults` makes of outcomes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fault_runs.__main__ import cannot_run, listing, write
from fault_runs.deployed import KINDS
from fault_runs.outcome import Outcome, table
from fault_runs.table import FAMILIES, FAULTS, named


def good(name: str) -> Outcome:
    return Outcome(name, "sglang", "c", "now", client_errors=0, recovered=True, recovery_s=1.5, reported=True)


def test_every_row_has_a_function_of_its_name() -> None:
    """What is listed can be run; a row without its function would pass unnoticed."""
    for fault in FAULTS:
        assert callable(fault.inflict()), fault.name
        assert cannot_run(fault, "sglang", True) is None


def test_names_are_unique_and_families_are_known() -> None:
    """A name stands for one row."""
    names = [fault.name for fault in FAULTS]
    assert len(names) == len(set(names))
    assert {fault.family for fault in FAULTS} == set(FAMILIES)
    assert {fault.brokers for fault in FAULTS} == {"", *KINDS}
    assert all(fault.done in listing(FAULTS) and fault.holds in listing(FAULTS) for fault in FAULTS)


def test_rows_are_named_or_taken_by_family() -> None:
    """Names and families; anything else is refused by name."""
    assert [fault.name for fault in named(["broker-killed"])] == ["broker-killed"]
    assert {fault.family for fault in named(["data"])} == {"data"}
    with pytest.raises(ValueError, match="no-such"):
        named(["broker-killed", "no-such"])


def test_rows_that_need_what_is_not_here_are_not_run() -> None:
    """They are told as not run and never as passed."""
    (row,) = named(["sglang-killed"])
    assert cannot_run(row, "modelled", True) == "needs SGLang"
    (row,) = named(["broker-disk-full"])
    assert cannot_run(row, "sglang", False) == "needs the right to mount"
    skipped = Outcome("x", "modelled", "c", "", not_run="needs SGLang")
    assert not skipped.passed
    assert "not run: needs SGLang" in table([skipped])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("recovered", False),
        ("reported", False),
        ("acknowledged_lost", 1),
        ("applied_twice", 1),
        ("broken", ["it did not hold"]),
    ],
)
def test_an_outcome_passes_only_when_all_holds(field: str, value: object) -> None:
    """Each of them alone fails the row, and what is wrong is said below the table."""
    outcome = good("one")
    assert outcome.passed
    setattr(outcome, field, value)
    assert not outcome.passed
    assert "FAIL" in table([outcome])
    assert good("two").passed and replace(good("two"), reported=None).passed
    if field == "broken":
        assert "one: it did not hold" in table([outcome])


def test_the_json_list_has_the_promised_fields(tmp_path: Path) -> None:
    """{name, client_errors, acknowledged_lost, recovered, recovery_s, reported} of each."""
    write(tmp_path / "out.json", [good("one"), good("two")])
    written = json.loads((tmp_path / "out.json").read_text())
    promised = {"name", "client_errors", "acknowledged_lost", "recovered", "recovery_s", "reported"}
    assert [row["name"] for row in written] == ["one", "two"]
    assert all(promised <= row.keys() for row in written)
    assert not list(tmp_path.glob(".*"))

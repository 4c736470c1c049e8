"""The replay command: same, the first difference in words, reigns, stale writers, files."""

import argparse
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.tools.journals import MODEL, broker_with, decisions_of, learning_fleet
from tide_daemon.bus.memory import MemoryBroker, MemoryBus
from tide_daemon.cli import main
from tide_daemon.errors import ConfigError
from tide_daemon.tools import journal_reading, replay
from tide_daemon.tools.configured_bus import OpenedBus
from tide_daemon.wire.records import Decision


@pytest.fixture(scope="module")
def journal() -> list[Decision]:
    return decisions_of(learning_fleet().entries)


def replayed(decisions: list[Decision], *, as_json: bool = False) -> tuple[int, str]:
    out = io.StringIO()
    code = replay.replay_decisions(decisions, out, as_json=as_json)
    return code, out.getvalue()


def written(decisions: list[Decision], path: Path) -> Path:
    with path.open("w") as lines:
        for decision in decisions:
            journal_reading.write_line(decision, lines)
    return path


def changed(decision: Decision, index: int, **fields: object) -> Decision:
    instructions = [dict(item) for item in decision.instructions]
    instructions[index] |= fields
    return replace(decision, instructions=tuple(instructions))


def test_a_file_replays_the_same(journal: list[Decision], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Written as lines and read back; every number survives."""
    path = written(journal, tmp_path / "journal.jsonl")
    assert list(journal_reading.read_file(path)) == [
        replace(d, event=json.loads(json.dumps(d.event)), instructions=tuple(json.loads(json.dumps(d.instructions))))
        for d in journal
    ]
    assert main(["replay", str(path)]) == 0
    assert f"Same: {len(journal)} entries" in capsys.readouterr().out


def test_the_first_difference_names_event_instruction_and_field(journal: list[Decision]) -> None:
    """The steps table of one instruction was another."""
    at = next(
        i
        for i, d in enumerate(journal)
        if any(item.get("steps_table") for item in d.instructions if item["instruction"] == "set_server")
    )
    index = next(i for i, item in enumerate(journal[at].instructions) if item["instruction"] == "set_server")
    other = [*journal[:at], changed(journal[at], index, steps_table=[[8, 5]]), *journal[at + 1 :]]
    code, text = replayed(other)
    assert code == 1
    assert f"After {at} equal entries" in text
    assert "event: server_reported of node-a, number " in text
    assert f"instruction {index + 1}: set_server for node-a, field steps_table" in text
    assert "journalled: [[8, 5]]" in text and "now:        [[" in text


def test_a_nested_field_is_named_by_its_path(journal: list[Decision]) -> None:
    """Within the fleet's state."""
    at, index = next(
        (i, j)
        for i, d in enumerate(journal)
        for j, item in enumerate(d.instructions)
        if item["instruction"] == "fleet_moved" and item["fleet"]["stage"] == "canary"  # type: ignore[index]
    )
    fleet = {**journal[at].instructions[index]["fleet"], "stage": "rest"}  # type: ignore[dict-item]
    _, text = replayed([*journal[:at], changed(journal[at], index, fleet=fleet)])
    assert "fleet_moved, field fleet.stage" in text
    assert 'journalled: "rest"' in text and 'now:        "canary"' in text


def test_instructions_too_many_or_too_few_are_said_so(journal: list[Decision]) -> None:
    at = next(i for i, d in enumerate(journal) if any(x["instruction"] == "judged" for x in d.instructions))
    cut = replace(journal[at], instructions=journal[at].instructions[:-1])
    assert "is not journalled: " in replayed([*journal[:at], cut])[1]
    more = replace(journal[at], instructions=(*journal[at].instructions, {"instruction": "judged", "version": 9}))
    assert "judged for 9 is not given now" in replayed([*journal[:at], more])[1]
    swapped = replace(journal[at], instructions=journal[at].instructions[::-1])
    assert "instruction 1: journalled " in replayed([*journal[:at], swapped])[1]


def test_late_entries_of_a_frozen_leader_are_left_out(journal: list[Decision]) -> None:
    """They stand behind the next reign's beginning, with a lower token."""
    later = decisions_of(learning_fleet(20).entries, token=9, controller="second")
    code, text = replayed([*journal, *later[:30], *journal[5:8], *later[30:]])
    assert code == 0
    assert text.startswith("3 entries of controllers that no longer led were left out.")
    assert f"Same: {len(journal) + len(later)} entries" in text


def test_a_journal_without_a_beginning_is_not_the_same(journal: list[Decision]) -> None:
    """Its head is gone: nothing can be compared."""
    code, text = replayed(journal[1:])
    assert code == 1
    assert "Nothing could be compared" in text and f"{len(journal) - 1} entries before" in text
    code, text = replayed([*journal[5:], *journal], as_json=True)
    assert code == 0
    assert json.loads(text) == {
        "same": True,
        "num_compared": len(journal),
        "num_skipped": len(journal) - 5,
        "num_refused": 0,
        "difference": None,
    }


def test_an_entry_of_another_version_fails(journal: list[Decision]) -> None:
    code, text = replayed([journal[0], replace(journal[1], event={"event": "moon_rose"})])
    assert code == 1 and "unknown event 'moon_rose'" in text


@pytest.mark.parametrize("line", ["{", "[]", '{"sequence": 1}', '{"sequence": 1, "numbers": 3}', "\udcff"])
def test_a_file_that_is_no_journal_ends_with_2(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(line.encode(errors="surrogateescape"))
    assert main(["replay", str(path)]) == 2
    assert str(path) in capsys.readouterr().err
    assert main(["replay", str(tmp_path / "none")]) == 2
    assert main(["replay", str(path), "--save", "y"]) == 2


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    replay.add_arguments(parser)
    return parser.parse_args(words)


async def from_bus(broker: MemoryBroker, *words: str) -> tuple[int, str]:
    @asynccontextmanager
    async def open_bus(_arguments: argparse.Namespace) -> AsyncIterator[OpenedBus]:
        bus = MemoryBus(broker)
        yield OpenedBus(bus, MODEL)
        await bus.close()

    out = io.StringIO()
    return await replay.run_on_bus(arguments(*words), open_bus, out), out.getvalue()


async def test_the_bus_is_replayed_and_saved(journal: list[Decision], tmp_path: Path) -> None:
    """All of it; the saved file says the same as the bus."""
    broker = await broker_with(journal)
    code, text = await from_bus(broker, "--since", "0", "--save", str(tmp_path / "saved"))
    assert code == 0 and f"Same: {len(journal)} entries" in text
    assert replayed(list(journal_reading.read_file(tmp_path / "saved"))) == (code, text)


async def test_since_begins_at_the_reign_under_way(journal: list[Decision]) -> None:
    """Two reigns; a time within the second replays all of the second and nothing of the first."""
    second = decisions_of(learning_fleet(20).entries, token=9)
    broker = await broker_with([*journal, *second])
    bus = MemoryBus(broker)
    assert await journal_reading.reign_start(bus, MODEL, len(journal) + 10) == len(journal) + 1
    assert await journal_reading.reign_start(bus, MODEL, len(journal)) == 1
    await bus.close()
    code, text = await from_bus(broker, "--since", "7d", "--json")  # stored just now: all of it is within 7 days
    assert code == 0 and json.loads(text)["num_compared"] == len(journal) + len(second)
    code, text = await from_bus(broker, "--since", "9999999999", "--json")  # the reign that is under way
    assert code == 0 and json.loads(text)["num_compared"] == len(second)


async def test_an_empty_journal_has_nothing_to_compare() -> None:
    code, text = await from_bus(await broker_with([]), "--since", "1h")
    assert code == 1 and "Nothing could be compared" in text


def test_times_are_understood() -> None:
    now = 1_000_000.0
    assert [journal_reading.parse_since(text, now) for text in ("90s", "30m", "2h", "7d", "12.5")] == [
        now - 90, now - 1800, now - 7200, now - 604_800, 12.5,
    ]  # fmt: skip
    assert journal_reading.parse_since("1970-01-12T13:46:40+00:00", now) == now
    with pytest.raises(ConfigError, match="is no time"):
        journal_reading.parse_since("yesterday", now)

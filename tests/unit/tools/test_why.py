"""The why command: from a file and from a bus, text and JSON."""

import argparse
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.unit.tools.journals import MODEL, broker_with, decisions_of, learning_fleet
from tide_daemon.bus.memory import MemoryBroker, MemoryBus
from tide_daemon.cli import main
from tide_daemon.tools import journal_reading, why
from tide_daemon.tools.configured_bus import OpenedBus
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.records import Decision, DesiredServer, NodeReport


@pytest.fixture(scope="module")
def journal() -> list[Decision]:
    return decisions_of(learning_fleet().entries)


@pytest.fixture(scope="module")
def file(journal: list[Decision], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("why") / "journal.jsonl"
    with path.open("w") as lines:
        for decision in journal:
            journal_reading.write_line(decision, lines)
    return path


def test_the_fleet_and_its_last_five_decisions(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without options."""
    assert main(["why", "--file", str(file)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("Version 1 is served")
    assert "The last 5 decisions:" in text
    assert text.count(" UTC, when ") == 5


def test_a_node_and_a_version(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both at once, without decisions unless asked for."""
    assert main(["why", "--file", str(file), "--node", "node-a", "--version", "1"]) == 0
    text = capsys.readouterr().out
    assert "node-a: engine ready" in text and "it pays from" in text
    assert "promoted by the gate" in text
    assert "decisions" not in text
    assert main(["why", "--file", str(file), "--version", "1", "--last", "2", "--json"]) == 0
    sections = json.loads(capsys.readouterr().out)
    assert set(sections) == {"version", "decisions"} and len(sections["decisions"]) == 2


def test_a_trainer_is_explained_by_its_name(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["why", "--file", str(file), "--node", "trainer"]) == 0
    assert capsys.readouterr().out.startswith("trainer: waiting in round 0")


def test_an_empty_journal_and_wrong_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").write_text("")
    assert main(["why", "--file", str(tmp_path / "empty")]) == 1
    assert "no state of the fleet" in capsys.readouterr().out
    assert main(["why", "--file", str(tmp_path / "empty"), "--last", "0"]) == 2


def test_unreadable_entries_are_counted(journal: list[Decision], tmp_path: Path) -> None:
    known = why.take_in([*journal, Decision(1, 99, "x", 1.0, {"event": "nothing"}, (), "", {}), *journal[:3]])
    assert known.num_unreadable == 1
    assert len(known.history.decisions) == len(why.take_in(journal).history.decisions)  # the stale ones are left out


async def explained(broker: MemoryBroker, *words: str) -> tuple[int, str]:
    @asynccontextmanager
    async def open_bus(_arguments: argparse.Namespace) -> AsyncIterator[OpenedBus]:
        bus = MemoryBus(broker)
        yield OpenedBus(bus, MODEL)
        await bus.close()

    parser = argparse.ArgumentParser()
    why.add_arguments(parser)
    out = io.StringIO()
    return await why.run_on_bus(parser.parse_args(words), open_bus, out), out.getvalue()


async def test_the_bus_says_what_is_desired_and_reported_now(journal: list[Decision]) -> None:
    """Newer than the journal: believed first."""
    broker = await broker_with(journal)
    bus = MemoryBus(broker)
    wanted = DesiredServer("node-a", 99, 8, 1.0, 5, "5" * 64, ((2, 1),), True, 1.0, "a successor says so")
    report = NodeReport("node-a", 1.0, 1, "ready", 1, "1" * 64, 0, 4, 1.0, (), True, 0, 0, 0, 0, 0, 0, 1)
    for record in (wanted, report):
        await bus.publish(subjects.subject_of(MODEL, record), envelope.encode(record))
    code, text = await explained(broker, "--node", "node-a")
    assert code == 0
    assert "runs version 1 and is asked to run version 5: it has not swapped yet" in text
    assert "1 drafted token a step up to batch 2, plain above" in text
    code, text = await explained(broker)
    assert code == 0 and text.startswith("Version 1 is served")

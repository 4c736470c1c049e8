"""Scenario files: what is wrong with one is said all at once, in words that help."""

from pathlib import Path

import pytest

from tests.unit.simulate.small import small
from tide_daemon.simulate import reading
from tide_daemon.simulate.reading import ScenarioError, load, read

PHASE = {"name": "x", "hours": 1, "running": 1, "mix": {"code": 1.0}}


def problems(document: dict[str, object]) -> str:
    with pytest.raises(ScenarioError) as caught:
        read("mine", document)
    return str(caught.value)


def test_a_small_scenario_is_read_with_its_defaults() -> None:
    """What the file leaves out has the documented default."""
    scenario = read("mine", small())
    assert (scenario.seconds, scenario.num_servers, scenario.network.loss) == (360.0, 2, 0.0)
    assert scenario.phases[0].mix_end == {"code": 1.0} and scenario.phases[0].running_end == 16.0


def test_every_shipped_scenario_can_be_read() -> None:
    """By its bare name; each has a title."""
    shipped = reading.shipped()
    assert len(shipped) >= 14 and all(shipped.values())
    for name in shipped:
        assert load(name).name == name


def test_all_problems_come_in_one_message() -> None:
    """Three mistakes in three tables: three lines."""
    text = problems(small(serverz=1, network={"loss": 1.5}, swap_s="fast"))
    assert len(text.splitlines()) == 3
    assert "serverz: there is no such key" in text
    assert "network.loss must be 0 to 0.99, it is 1.5" in text
    assert "swap_s must be a number, it is 'fast'" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"title": 3}, "title must be a text"),
        ({"cost": {}}, "at least one [cost.NAME]"),
        ({"phase": []}, "at least one [[phase]]"),
        ({"policy": {"max_stepz": 3}}, "no such policy setting: max_stepz"),
        ({"policy": {"max_steps": 99}}, "max_steps must be 1 to 15, it is 99"),
        ({"policy": {"max_steps": "three"}}, "policy:"),
        ({"policy": 3}, "policy must be a table"),
        ({"first_draft": {"poems": 1.0}}, "there is no [workload.poems]"),
        ({"report_s": 20.0}, "every node would count as lost"),
        ({"failure": [{"kind": "flood", "at_hours": 0.0, "seconds": 1.0}]}, "must be one of trainers_lost"),
        ({"failure": [{"kind": "cut_off", "at_hours": 1.0, "seconds": 1.0}]}, "is not over when the scenario ends"),
        ({"failure": [{"kind": "cut_off"}]}, "failure 1.at_hours is missing"),
        ({"servers": [{"name": "gpu", "count": 1, "cost": "tpu"}]}, "there is no [cost.tpu]"),
        ({"servers": [{"name": "gpu", "count": 1.5, "cost": "gpu"}]}, "count must be a whole number"),
        ({"phase": [{"name": "x", "hours": 1, "running": 1, "mix": {"code": 0.5}}]}, "it adds up to 0.5"),
        ({"phase": [{"name": "x", "hours": 1, "mix": {"code": 1.0}}]}, "either running (closed"),
        ({"repeat": 10_000, "phase": [PHASE, PHASE]}, "20000 phases"),
        ({"cost": {"gpu": {"tokens": [4, 1], "target_ms": [1.0, 2.0], "draft_ms": 1.0}}}, "and ascending"),
        ({"cost": {"gpu": {"tokens": [1], "target_ms": [1.0, 2.0], "draft_ms": 1.0}}}, "the same length"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(changes: dict[str, object], said: str) -> None:
    """In the words of the file, with the value that stands there."""
    assert said in problems(small(**changes))


def test_files_that_are_none(tmp_path: Path) -> None:
    """A missing file names the shipped scenarios; a broken one says where."""
    with pytest.raises(ScenarioError, match="the shipped scenarios are abrupt"):
        load("no-such-scenario")
    broken = tmp_path / "broken.toml"
    broken.write_text("title = \n")
    with pytest.raises(ScenarioError, match="not TOML"):
        load(str(broken))


def test_the_example_of_the_reference_can_be_simulated() -> None:
    """The smallest scenario of SCENARIOS.md is one."""
    text = Path(reading.__file__).with_name("SCENARIOS.md").read_text()
    block = text.split("The smallest one:\n\n")[1].split("\n## ")[0]
    lines = [line[4:] for line in block.splitlines() if line.startswith("    ") or not line]
    import tomllib

    assert read("smallest", tomllib.loads("\n".join(lines))).num_servers == 1

import dataclasses
import json

import pytest

from tests.unit.policy.simulated_fleet import one_node
from tide_daemon.policy.events import FleetState, ServerReported, StepCount, Tick, event_from_map, event_to_map
from tide_daemon.policy.instructions import instruction_from_map, instruction_to_map
from tide_daemon.policy.plain import from_plain, to_plain
from tide_daemon.policy.replay import replay
from tide_daemon.policy.settings import PolicySettings


def recorded() -> list[tuple[dict[str, object], tuple[dict[str, object], ...]]]:
    """A run with a promotion, probes, a round and a shift, as it would stand in the journal."""
    fleet = one_node(lambda v, t: (0.7 if t < 1100 else 0.25) if v else 0.0, lambda t: 8)
    fleet.tokens_per_s = 100
    fleet.run(60)
    fleet.publish(1, 2.4)
    fleet.run(120)
    return [
        (event_to_map(event), tuple(instruction_to_map(item) for item in instructions))
        for event, instructions in fleet.entries
    ]


def test_events_and_instructions_survive_json() -> None:
    """Every event and instruction of a run comes back equal from its map."""
    for event_map, instruction_maps in recorded():
        assert event_to_map(event_from_map(json.loads(json.dumps(event_map)))) == event_map
        for each in instruction_maps:
            assert instruction_to_map(instruction_from_map(json.loads(json.dumps(each)))) == each


def test_a_journal_replays_to_the_same_instructions() -> None:
    """Through JSON and back, to the last digit."""
    entries = json.loads(json.dumps(recorded()))
    outcome = replay((event, tuple(instructions)) for event, instructions in entries)
    assert outcome.difference is None
    assert (outcome.num_skipped, outcome.num_compared) == (0, len(entries))


def test_a_journal_without_its_head_waits_for_the_next_reign() -> None:
    """Entries before the first ControllerStarted cannot be replayed and are counted."""
    entries = recorded()
    outcome = replay(entries[1:] + entries)
    assert outcome.difference is None
    assert outcome.num_skipped == len(entries) - 1


def test_the_first_difference_is_reported() -> None:
    """A changed instruction is found where it stands."""
    entries = recorded()
    index = next(i for i, (_, made) in enumerate(entries) if i > 50 and made)
    changed = dict(entries[index][1][0], reason="something else")
    entries[index] = (entries[index][0], (changed, *entries[index][1][1:]))
    outcome = replay(entries)
    assert outcome.difference is not None and outcome.difference.index == index
    assert outcome.difference.replayed[0]["reason"] != "something else"


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"event": "unknown"},
        {"event": "tick"},
        {"event": "tick", "at": "now"},
        {"event": "tick", "at": True},
        {"event": "tick", "at": 1.0, "more": 1},
        {"event": "server_reported", "at": 1.0, "steps": 3},
        {"event": "server_found", "at": 1.0, "node": "a", "generation": 1, "draft_version": 1, "draft_digest": "d",
         "steps_table": [[1, 2, 3]], "collect": True, "sample_rate": 1.0},
    ],
)  # fmt: skip
def test_bad_maps_are_refused(value: dict[str, object]) -> None:
    """One error for anything that is not a map of ours."""
    with pytest.raises(ValueError):
        event_from_map(value)


def test_ints_are_good_floats_but_flags_are_not_counts() -> None:
    """JSON writers may drop the point; a bool is refused."""
    assert event_from_map({"event": "tick", "at": 3}) == Tick(3.0)
    step = {"batch_size": True, "num_steps": 0, "num_verifies": 1, "num_tokens": 1, "accepted_at": []}
    with pytest.raises(ValueError, match="batch_size"):
        from_plain(StepCount, {**step, "step_s": 1.0, "target_s": 1.0, "median_step_s": 1.0})


def test_older_journals_may_lack_new_fields() -> None:
    """Fields with a default may be missing."""
    assert from_plain(FleetState, {"serving_version": 3}).serving_version == 3
    with pytest.raises(ValueError, match="StepCount"):
        from_plain(StepCount, {})


def test_only_plain_values_have_a_plain_form() -> None:
    """Anything else is our own mistake and is named."""
    with pytest.raises(TypeError, match="object"):
        to_plain(object())
    assert to_plain(ServerReported(1.0, "a", 1, "ready", 0, "", 0, 1.0, ()))["steps"] == []


def test_settings_name_every_problem_at_once() -> None:
    """Out of range and contradictory values are listed together."""
    with pytest.raises(ValueError) as caught:
        PolicySettings(max_steps=0, speculate_off=1.5, gate_confidence=2.0)
    lines = str(caught.value).splitlines()
    assert [line.split()[0] for line in lines] == ["max_steps", "gate_confidence", "speculate_off"]


def test_settings_survive_the_journal() -> None:
    """From map to map; unknown names are errors."""
    settings = PolicySettings(max_steps=3, dwell_s=7.5)
    assert PolicySettings.from_map(json.loads(json.dumps(settings.to_map()))) == settings
    with pytest.raises(ValueError, match="nonsense"):
        PolicySettings.from_map({"nonsense": 1.0})


def test_every_setting_is_documented() -> None:
    """A field without a line in the docstring is a field that nobody can set."""
    assert PolicySettings.__doc__ is not None
    missing = [field.name for field in dataclasses.fields(PolicySettings) if field.name not in PolicySettings.__doc__]
    assert missing == []

import pytest

from tide_daemon.policy.settings import PolicySettings
from tide_daemon.policy.steps import Choice, batch_edges, best_steps, build_table, choose_steps, edge_of, read_table

SETTINGS = PolicySettings(speculate_on=1.05, speculate_off=1.0, step_gain=0.03, dwell_s=5.0, off_dwell_s=1.0)


@pytest.mark.parametrize(
    ("current", "age_s", "ratios", "expected"),
    [
        (0, 60.0, {1: 1.04, 2: 1.02}, 0),  # below the upper threshold: stay off
        (0, 60.0, {1: 1.04, 2: 1.06}, 2),  # above: on, with the best
        (0, 4.0, {1: 1.20}, 0),  # not so soon after switching off
        (2, 60.0, {1: 0.98, 2: 1.01}, 2),  # between the thresholds: stay on
        (2, 60.0, {1: 0.98, 2: 0.99}, 0),  # below the lower one: off
        (2, 1.5, {1: 0.90, 2: 0.80}, 0),  # off does not wait for the long dwell
        (2, 0.5, {1: 0.90, 2: 0.80}, 2),  # but for the short one
        (3, 60.0, {1: 1.02, 3: 0.90}, 1),  # a shorter chain still pays
        (3, 60.0, {2: 1.32, 3: 1.30}, 3),  # not worth a change
        (3, 60.0, {2: 1.40, 3: 1.30}, 2),  # worth it
        (3, 4.0, {2: 1.40, 3: 1.30}, 3),  # but not so soon
    ],
)
def test_choose_steps(current: int, age_s: float, ratios: dict[int, float], expected: int) -> None:
    """Two thresholds, two dwells, a margin between chain lengths."""
    choice = Choice(current, 100.0)
    assert choose_steps(choice, 100.0 + age_s, ratios, can_switch_on=True, settings=SETTINGS) == expected


def test_old_evidence_switches_nothing_on() -> None:
    """Without recent evidence off stays off, however good it looks."""
    assert choose_steps(Choice(0, 0.0), 100.0, {1: 2.0}, can_switch_on=False, settings=SETTINGS) == 0


def test_equal_ratios_take_the_shorter_chain() -> None:
    """Ties are broken the same way every time."""
    assert best_steps({3: 1.2, 1: 1.2, 2: 1.2}) == 1


def test_edges_cover_every_batch_size() -> None:
    """1..8 stand alone; each batch size up to the largest has one edge, and above it none."""
    edges = batch_edges(50)
    assert edges[:8] == (1, 2, 3, 4, 5, 6, 7, 8)
    assert edges[-1] == 50
    for batch_size in range(1, 51):
        edge = edge_of(batch_size, edges)
        assert edge is not None and batch_size <= edge <= max(batch_size, 1.25 * batch_size + 1)
    assert edge_of(51, edges) is None


def test_table_joins_neighbours_and_drops_plain_at_the_end() -> None:
    """The table is as short as it can be and reads back the same."""
    steps = {1: 3, 2: 3, 3: 0, 4: 2, 5: 0, 6: 0}
    table = build_table(steps)
    assert table == ((2, 3), (3, 0), (4, 2))
    assert read_table(table, tuple(steps)) == steps
    assert build_table({1: 0, 2: 0}) == ()

"""The list of drafts, and a draft that others are built on."""

from dataclasses import replace

import pytest

from schemas.examples import EXAMPLES
from tide_daemon.bus.memory import MemoryBroker, MemoryBus
from tide_daemon.bus.topology import TopologyLimits, build_topology
from tide_daemon.errors import ConfigError
from tide_daemon.policy.events import FleetState
from tide_daemon.tools import drafts
from tide_daemon.tools.table import table
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.records import DraftManifest

ANCHOR, DELTA = EXAMPLES["draft_manifest_anchor"], EXAMPLES["draft_manifest_delta"]
assert isinstance(ANCHOR, DraftManifest) and isinstance(DELTA, DraftManifest)
MODEL = ANCHOR.spec.model


async def test_a_base_is_not_forgotten_before_its_deltas() -> None:
    """The newest delta may go."""
    bus = MemoryBus(MemoryBroker(build_topology(TopologyLimits())))
    manifests = [replace(ANCHOR, version=1), replace(DELTA, version=2, base_version=1)]
    for manifest in manifests:
        await bus.publish(subjects.subject_of(MODEL, manifest), envelope.encode(manifest))
    with pytest.raises(ConfigError, match="version 1 is what version 2 is a delta of"):
        await drafts._check_nobody_needs(bus, MODEL, 1)
    await drafts._check_nobody_needs(bus, MODEL, 2)
    rows = await drafts.read_drafts(bus, MODEL)
    assert [(row.version, row.base_version, row.state) for row in rows] == [
        (1, None, "waits for the gate"),
        (2, 1, "waits for the gate"),
    ]


def test_states() -> None:
    """One word or two for each version, the most telling."""
    fleet = FleetState(8, "d", 7, "d", "canary", 9, "d", "gpu-1", judged=(5, 6, 7, 8, 9), refused=(5,))
    states = {version: drafts._state(version, fleet) for version in (5, 6, 7, 8, 9, 10)}
    assert states == {
        5: "rolled back or forgotten", 6: "judged", 7: "served before", 8: "served", 9: "on canary gpu-1",
        10: "waits for the gate",
    }  # fmt: skip
    assert drafts._state(8, replace(fleet, pinned=True)) == "pinned"


def test_a_table_is_aligned() -> None:
    """Words to the left, numbers to the right, no blanks at the end."""
    assert table(("NAME", "N", "X"), [("a", 10, 1.5), ("bcdef", 9, 20.0)]) == [
        "NAME    N      X",
        "a      10   1.50",
        "bcdef   9  20.00",
    ]
    assert table(("NAME", "N"), []) == ["NAME  N"]

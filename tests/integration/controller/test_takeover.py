"""The bench's own turns, few of them: real controller processes, killed and frozen."""

from pathlib import Path

import pytest
from benches import takeover
from benches.settings import Settings


@pytest.mark.slow
def test_one_kill_and_one_freeze(tmp_path: Path) -> None:
    """Somebody leads within three lease periods, nothing is lost and nothing done twice."""
    figures = takeover.run(Settings(tmp_path, {"turns": "1"}))
    assert figures["worst_lease_periods"] <= 3
    assert (figures["lost"], figures["doubled"]) == (0, 0)
    assert figures["num_reigns"] >= 3 and figures["num_decisions"] > 5

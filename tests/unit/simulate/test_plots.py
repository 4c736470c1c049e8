from typing import Any

from matplotlib.figure import Figure

from tide_daemon.simulate.plots import _fixed_lines

PHASE = {"at_s": 0.0, "seconds": 3600.0, "counted_tokens": {"tide": 15.0, "plain": 10.0, "static": 12.0}}


def labels(tokens: dict[str, float]) -> set[str]:
    axis: Any = Figure().subplots()
    _fixed_lines(axis, {"phases": [PHASE], "tokens_by_policy": tokens})
    return set(axis.get_legend_handles_labels()[1])


def test_fixed_policies_have_lines() -> None:
    """Those that ran; a fleet with devices that only train shows what all of them serving would give."""
    static = "static (best steps by phase)"
    assert labels({"plain": 10.0}) == {static}
    assert labels({"plain": 10.0, "all_serve_plain": 11.0}) == {static, "plain, those that train serve as well"}

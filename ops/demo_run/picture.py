"""Draws a run: accept length, tokens a second, draft versions and decisions over time."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from demo_run.results import Results
from demo_run.timeline import Timeline

COLOURS = {"tide": "#0a7d8c", "plain": "#777777", "frozen": "#c8553d"}
SMOOTH_REPORTS = 9
"""Reports averaged for the accept-length line; single reports hold a few dozen steps and are noisy."""


def draw(
    path: Path, timeline: Timeline, results: Results, phase_starts: list[tuple[str, float]], end_at: float
) -> None:
    """Write a PNG to `path`. `phase_starts` are (name, unix seconds) in order."""
    figure, axes = plt.subplots(3, 1, figsize=(12, 9), sharex=True, height_ratios=[3, 3, 1.4])
    zero = timeline.started_at
    _accept_length(axes[0], timeline, results, zero)
    _token_rate(axes[1], results, zero)
    _versions(axes[2], timeline, zero)
    for axis in axes:
        for index, (name, at) in enumerate(phase_starts):
            end = phase_starts[index + 1][1] if index + 1 < len(phase_starts) else end_at
            axis.axvspan((at - zero) / 60, (end - zero) / 60, color="#0a7d8c", alpha=0.05 + 0.05 * (index % 2), lw=0)
            if axis is axes[0]:
                axis.text((at - zero) / 60 + 0.05, 1.01, name, transform=axis.get_xaxis_transform(), fontsize=10)
        axis.grid(alpha=0.25)
    axes[-1].set_xlabel("minutes")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _accept_length(axis: Axes, timeline: Timeline, results: Results, zero: float) -> None:
    points = [p for p in timeline.points if p.num_rows]
    times, values = [], []
    for end in range(len(points)):
        window = points[max(0, end - SMOOTH_REPORTS + 1) : end + 1]
        times.append((points[end].at - zero) / 60)
        values.append(sum(p.num_tokens for p in window) / sum(p.num_rows for p in window))
    axis.plot(times, values, color=COLOURS["tide"], lw=1.2, label="TIDE, live")
    for mode in ("frozen", "plain"):
        chosen = [m for m in results.slices if m.mode == mode and m.accept_length]
        axis.plot(
            [(m.at - zero) / 60 for m in chosen],
            [m.accept_length for m in chosen],
            "o-",
            ms=4,
            lw=0.8,
            color=COLOURS[mode],
            label=mode,
        )
    axis.set_ylabel("accept length")
    axis.legend(loc="lower right", fontsize=9)


def _token_rate(axis: Axes, results: Results, zero: float) -> None:
    for mode in ("plain", "frozen", "tide"):
        chosen = [m for m in results.slices if m.mode == mode and m.result.num_tokens]
        axis.plot(
            [(m.at - zero) / 60 for m in chosen],
            [m.result.tokens_per_s for m in chosen],
            "o-",
            ms=4,
            lw=1.0,
            color=COLOURS[mode],
            label=mode,
        )
    axis.set_ylabel("tokens/s, as clients see it")
    axis.legend(loc="lower right", fontsize=9)


def _versions(axis: Axes, timeline: Timeline, zero: float) -> None:
    axis.step(
        [(p.at - zero) / 60 for p in timeline.points],
        [p.draft_version for p in timeline.points],
        where="post",
        color=COLOURS["tide"],
        label="draft version running",
    )
    kinds = {"promote": ("^", "#2a9d3a"), "reject": ("v", "#c8553d")}
    for decision in timeline.decisions:
        for word, (marker, colour) in kinds.items():
            if word in decision.reason.lower():
                axis.plot((decision.at - zero) / 60, 0, marker, color=colour, ms=7)
    axis.plot([], [], "^", color="#2a9d3a", label="promoted")
    axis.plot([], [], "v", color="#c8553d", label="rejected")
    axis.set_ylabel("draft")
    axis.legend(loc="lower right", fontsize=9)

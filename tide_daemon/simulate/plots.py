"""One picture of a result: speed against plain decoding and fixed policies, accept length, versions and decisions."""

from pathlib import Path
from typing import Any

_MARKS = {"promote": ("^", "tab:green"), "reject": ("v", "tab:red"), "failure": ("x", "black"), "round": ("|", "gray")}
_ROLLED_BACK = ("s", "tab:red")


def draw(result: dict[str, Any], folder: Path) -> Path:
    """Write SCENARIO.png into the folder; returns its path.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    hours = [at / 3600 for at in result["series"]["at_s"]]
    figure = Figure(figsize=(11, 9), layout="constrained")
    speed, length, versions, steps = figure.subplots(4, 1, sharex=True, height_ratios=(3, 2, 2, 1.3))
    speed.plot(hours, result["series"]["over_plain"], color="tab:blue", label="TIDE")
    speed.axhline(1.0, color="gray", linewidth=0.8, label="plain")
    _fixed_lines(speed, result)
    speed.set_ylabel("tokens/s over plain")
    speed.legend(loc="best", fontsize="small")
    length.plot(hours, result["series"]["accept_length"], color="tab:green")
    length.set_ylabel("accept length")
    _versions(versions, result)
    steps.plot(hours, result["series"]["speculated"], color="tab:purple", label="share speculated")
    steps.set_ylim(-0.05, 1.05)
    steps.set_ylabel("speculating")
    steps.set_xlabel("hours")
    for axis in (speed, length, versions, steps):
        for phase in result["phases"][1:]:
            axis.axvline(phase["at_s"] / 3600, color="lightgray", linestyle=":", linewidth=0.8)
    figure.suptitle(f"{result['title']} (seed {result['seed']})")
    path = folder / f"{result['scenario']}.png"
    figure.savefig(path, dpi=100)
    return path


def _fixed_lines(axis: Any, result: dict[str, Any]) -> None:
    """Each fixed policy's mean speed in each phase, with its best number of steps there; and all devices serving."""
    colours = {"static": "tab:orange", "newest": "tab:brown"}
    for policy, colour in colours.items():
        for index, phase in enumerate(result["phases"]):
            counted = phase["counted_tokens"]
            if policy in counted and counted.get("plain", 0.0) > 0.0:
                begin, end = phase["at_s"] / 3600, (phase["at_s"] + phase["seconds"]) / 3600
                label = f"{policy} (best steps by phase)" if index == 0 else None
                axis.hlines(counted[policy] / counted["plain"], begin, end, color=colour, linestyle="--", label=label)
    tokens = result["tokens_by_policy"]
    if tokens.get("all_serve_plain") and tokens.get("plain"):
        height = tokens["all_serve_plain"] / tokens["plain"]
        axis.axhline(height, color="tab:red", linestyle=":", label="plain, those that train serve as well")


def _versions(axis: Any, result: dict[str, Any]) -> None:
    """The serving version as a staircase, decisions as marks on it."""
    at = [moment / 3600 for moment, _ in result["versions"]] + [result["seconds"] / 3600]
    served = [version for _, version in result["versions"]]
    axis.step(at, [*served, served[-1]], where="post", color="tab:blue")
    axis.set_ylabel("serving version")
    axis.yaxis.get_major_locator().set_params(integer=True)
    labelled = set()
    for decision in result["decisions"]:
        kind = "rolled back" if "rolled back" in decision["text"] else decision["kind"]
        mark = _ROLLED_BACK if kind == "rolled back" else _MARKS.get(kind)
        if mark is None:
            continue
        now = max((version for moment, version in result["versions"] if moment <= decision["at_s"]), default=0)
        label = kind if kind not in labelled else None
        labelled.add(kind)
        axis.scatter(decision["at_s"] / 3600, now, marker=mark[0], color=mark[1], s=24, label=label, zorder=3)
    if labelled:
        axis.legend(loc="best", fontsize="small", ncols=len(labelled))

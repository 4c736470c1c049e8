"""The worst ten minutes of any server in any shipped scenario, against plain decoding.

What a server made in a window is compared with what plain decoding would have made in the same busy
time, at the same batch sizes and the same speed of the machine; so a window is bad only by TIDE's doing:
probes, canaries, swaps, captures, and steps that traffic has left behind.
"""

from benches.settings import Settings
from benches.simulated import key, scenarios, tide, told


def run(settings: Settings) -> dict[str, float]:
    """Figures: the worst window of all, and of each scenario."""
    worst = {}
    for scenario in scenarios(settings):
        ratio, server, at_s = tide(scenario).worst_window()
        told(f"  worst window {ratio:.4f} of plain: {server} from {at_s / 3600:.2f} h on")
        worst[f"worst_{key(scenario)}"] = ratio
    return {"worst_window": min(worst.values()), **worst}

"""TIDE against the best fixed policy of each phase, chosen in hindsight, on simulated fleets.

The fixed policies are plain decoding, the first draft, and always the newest draft (rounds one after
another, no gate); the latter two with whichever number of steps was best in that phase. They meet the
same servers, traffic and seeds, and pay for swaps, captures and training times as TIDE does. Tokens
count after the first 5% of each phase.

    regret_min      the worst phase of any scenario: TIDE's tokens over those of the best fixed policy
    over_static_*   TIDE over the first draft, all phases, the draft with its best number of steps in each
"""

from benches.settings import Settings
from benches.simulated import key, scenarios, tide, told
from tide_daemon.simulate.figures import compare, phase_maps
from tide_daemon.simulate.running import STATIC

OVER_STATIC = ("abrupt", "language")


def run(settings: Settings) -> dict[str, float]:
    """Figures as above, and the worst phase of each scenario."""
    worst: dict[str, float] = {}
    over_static: dict[str, float] = {}
    for scenario in scenarios(settings):
        phases = phase_maps(scenario, tide(scenario), compare(scenario))
        found = min(phases, key=lambda phase: phase["over_best"])
        worst[f"regret_{key(scenario)}"] = found["over_best"]
        told(f"  worst phase {found['name']}: {found['over_best']:.4f} of {found['best']}")
        if scenario.name in OVER_STATIC:
            counted = [phase["counted_tokens"] for phase in phases]
            own, static = (sum(tokens[policy] for tokens in counted) for policy in ("tide", STATIC))
            over_static[f"over_static_{key(scenario)}"] = own / static
    return {"regret_min": min(worst.values()), **over_static, **worst}

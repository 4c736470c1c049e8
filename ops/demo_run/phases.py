"""The demonstration's plan: which workload when, and for how long. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Phase:
    """A span of one workload. `share` of the time that is left for traffic."""

    name: str
    workload: str
    share: float


PHASES = (
    Phase("1 code", "code", 0.36),
    Phase("2 chat", "chat", 0.40),
    Phase("3 code again", "code", 0.24),
)
"""A narrow workload first, since a draft learns it fast; then a change; then the first again."""


def budgets_s(total_s: float, phases: tuple[Phase, ...] = PHASES) -> list[float]:
    """Seconds for each phase; their sum is `total_s`."""
    shares = sum(phase.share for phase in phases)
    return [total_s * phase.share / shares for phase in phases]

"""What came of one fault, and the table of all."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

COLUMNS = ("FAULT", "RESULT", "ERRORS", "LATENCY", "LOST", "TWICE", "BACK AFTER", "REPORTED")


@dataclass(slots=True)
class Outcome:
    """One line of the JSON list.

    Attributes:
        client_errors: requests that failed from the fault's beginning until everything was well again; None when
            no client could be asked (a modelled engine).
        acknowledged_lost: samples, drafts and decisions together, see ledger.py.
        recovered, recovery_s: from the moment at which the outside cause was gone.
        reported: pages and metrics both said so; None where nothing is wrong that they could say.
        extra_latency_s: median and 95th percentile of whole requests, over those of the seconds before the fault.
        client_requests: how many were answered meanwhile.
        unacknowledged_lost: samples that the broker lost before any trainer had acknowledged them.
        applied_twice: versions, decisions or samples that took effect twice.
        broken: what the row says must hold and did not, in sentences; empty when all held.
        unreported: which page or metric did not say so.
    """

    name: str
    engine: str
    commit: str
    at: str
    client_errors: int | None = None
    acknowledged_lost: int = 0
    recovered: bool = False
    recovery_s: float | None = None
    reported: bool | None = False
    extra_latency_s: dict[str, float] | None = None
    client_requests: int | None = None
    unacknowledged_lost: int = 0
    applied_twice: int = 0
    broken: list[str] = field(default_factory=list)
    unreported: list[str] = field(default_factory=list)
    notes: dict[str, object] = field(default_factory=dict)
    not_run: str = ""

    @property
    def passed(self) -> bool:
        """Whether everything that must hold held."""
        return (
            not self.not_run
            and self.recovered
            and self.reported is not False
            and not self.broken
            and not self.acknowledged_lost
            and not self.applied_twice
        )

    def to_map(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self) | {"passed": self.passed}


def table(outcomes: Sequence[Outcome]) -> str:
    """All of them as text, and below it what did not hold."""
    rows = [COLUMNS, *(_row(outcome) for outcome in outcomes)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for outcome in outcomes:
        lines += [f"{outcome.name}: {words}" for words in outcome.broken]
        lines += [f"{outcome.name}: not reported: {words}" for words in outcome.unreported]
    return "\n".join(lines)


def _row(outcome: Outcome) -> tuple[str, ...]:
    if outcome.not_run:
        return (outcome.name, f"not run: {outcome.not_run}", *[""] * (len(COLUMNS) - 2))
    extra = outcome.extra_latency_s
    return (
        outcome.name,
        "pass" if outcome.passed else "FAIL",
        "-" if outcome.client_errors is None else str(outcome.client_errors),
        "-" if extra is None else f"{extra['median']:+.2f} s",
        str(outcome.acknowledged_lost),
        str(outcome.applied_twice),
        "never" if outcome.recovery_s is None else f"{outcome.recovery_s:.1f} s",
        {True: "yes", False: "NO", None: "-"}[outcome.reported],
    )

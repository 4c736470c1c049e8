"""One thing that was looked at, and what to change if it is not well."""

from dataclasses import dataclass

OK, WARNING, FAILED, SKIPPED = "ok", "warning", "failed", "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        check: short name, stable, for scripts.
        state: "ok", "warning" (it will run, worse), "failed" (it will not) or "skipped" (cannot be told).
        found: what is there.
        advice: what to change; "" when ok.
    """

    check: str
    state: str
    found: str
    advice: str = ""

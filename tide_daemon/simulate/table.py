"""One TOML table being read: takes keys by kind and bounds, and notes every problem, not only the first."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

MAX_PHASES = 10_000
_ANY, _SHARE, _POSITIVE = (0.0, math.inf), (0.0, 1.0), (1e-9, math.inf)
FIELDS: dict[str, dict[str, tuple[float, float]]] = {
    "cost": {"draft_ms": _ANY, "noise": (0.0, 0.5)},
    "servers": {"count": (1, 100_000), "max_running": (1, 1024)},
    "trainers": {
        "count": (1, 10_000),
        "tokens_per_s": _POSITIVE,
        "round_s": _ANY,
        "pool_s": _ANY,
        "report_s": (0.1, 3600.0),
    },
    "workload": {
        "start": (0.0, 0.99),
        "ceiling": (0.0, 0.99),
        "half_tokens": _POSITIVE,
        "depth": _SHARE,
        "jitter": (0.0, 0.5),
        "request_spread": (0.0, 5.0),
    },
    "learning": {
        "transfer": _SHARE,
        "forget_tokens": _ANY,
        "max_round_tokens": _POSITIVE,
        "response_tokens": (1, 1 << 20),
        "heldout_share": (0.0, 0.5),
        "heldout_requests": (1, 10_000),
        "paired_spread": (0.0, 5.0),
    },
    "network": {"delay_s": (0.0, 600.0), "loss": (0.0, 0.99)},
    "failure": {"at_hours": _ANY, "seconds": _POSITIVE, "share": _SHARE},
    "poison": {"after_hours": _ANY, "live_share": _SHARE},
    "phase": {
        "hours": _POSITIVE,
        "wave_s": _ANY,
        "running": _ANY,
        "running_end": _ANY,
        "arrivals_per_s": _ANY,
        "arrivals_per_s_end": _ANY,
        "running_spread": (0.0, 1.0),
    },
    "": {
        "seed": (0, 1 << 62),
        "report_s": (0.1, 3600.0),
        "repeat": (1, MAX_PHASES),
        "swap_s": _ANY,
        "stall_s": _ANY,
        "capture_cost": _SHARE,
        "heldout_steps": (1, 15),
    },
}
_WHOLE = {
    "count", "max_running", "response_tokens", "heldout_requests", "seed", "repeat", "heldout_steps",
}  # fmt: skip
"""Numbers that each table may hold, and their bounds, ends included."""


class Table:
    """One TOML table being read: remembers which keys were taken, and notes what is wrong with them."""

    def __init__(self, where: str, values: object, problems: list[str]) -> None:
        self.where = where
        self.problems = problems
        self.values: Mapping[str, Any] = values if isinstance(values, dict) else {}
        self._taken: set[str] = set()
        if not isinstance(values, dict):
            self.problem(f"{where} must be a table")

    def problem(self, text: str) -> None:
        """Note a problem; reading goes on with some value so that the others are found too."""
        self.problems.append(text)

    def name(self, key: str) -> str:
        """The key with its table, for messages."""
        return f"{self.where}.{key}" if self.where else key

    def take(self, key: str) -> Any:
        """A value as it stands, None when it is missing."""
        self._taken.add(key)
        return self.values.get(key)

    def text(self, key: str, default: str | None = None) -> str:
        """A text; an empty one only where there is a default."""
        value = self.take(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or (not value and default is None):
            self.problem(f"{self.name(key)} must be a text" if value is not None else f"{self.name(key)} is missing")
            return ""
        return value

    def number(self, key: str, bounds: tuple[float, float]) -> Any:
        """A number within bounds, an int where FIELDS says whole."""
        value = self.take(key)
        whole = key in _WHOLE
        if value is None:
            self.problem(f"{self.name(key)} is missing")
        elif isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            self.problem(f"{self.name(key)} must be a {'whole number' if whole else 'number'}, it is {value!r}")
        elif not bounds[0] <= value <= bounds[1]:
            reach = f"at least {bounds[0]:g}" if bounds[1] == math.inf else f"{bounds[0]:g} to {bounds[1]:g}"
            self.problem(f"{self.name(key)} must be {reach}, it is {value:g}")
        else:
            return value if whole else float(value)
        return 1 if whole else max(bounds[0], 1.0)

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of numbers that is not empty."""
        value = self.take(key)
        good = isinstance(value, list) and value and all(_is_number(item) for item in value)
        if not good:
            self.problem(f"{self.name(key)} must be a list of numbers")
            return (1.0,)
        return tuple(float(item) for item in value)

    def shares(self, key: str) -> dict[str, float]:
        """Numbers >= 0 by workload."""
        value = self.take(key)
        if not isinstance(value, dict) or not all(_is_number(item) and item >= 0 for item in value.values()):
            self.problem(f"{self.name(key)} must give a number of at least 0 for each workload")
            return {}
        return {name: float(item) for name, item in value.items()}

    def table(self, key: str) -> "Table":
        """A table within this one; an empty one when it is missing."""
        value = self.take(key)
        return Table(self.name(key), {} if value is None else value, self.problems)

    def named(self, key: str) -> Iterator[tuple[str, "Table"]]:
        """Tables under a key, by their names: [key.NAME]. At least one."""
        value = self.take(key)
        if not isinstance(value, dict) or not value:
            self.problem(f"there must be at least one [{key}.NAME]")
            return
        for name, item in value.items():
            yield name, Table(f"{key}.{name}", item, self.problems)

    def listed(self, key: str, *, may_lack: bool = False) -> Iterator["Table"]:
        """Tables of an array: [[key]]."""
        value = self.take(key)
        if value is None and may_lack:
            return
        if not isinstance(value, list) or not value:
            self.problem(f"there must be at least one [[{key}]]")
            return
        for index, item in enumerate(value, start=1):
            yield Table(f"{key} {index}", item, self.problems)

    def record(self, kind: type[Any], table: str, **given: Any) -> Any:
        """A dataclass of numbers named in FIELDS, plus what is given; missing keys take the field's default."""
        fields = {field.name: field for field in dataclasses.fields(kind)}
        values = dict(given)
        for key, bounds in FIELDS[table].items():
            field = fields.get(key)
            if key in self.values or field is None or field.default is dataclasses.MISSING:
                values[key] = self.number(key, bounds)
        self.refuse_others()
        return kind(**values)

    def refuse_others(self) -> None:
        """Note every key that nobody asked for."""
        for key in self.values:
            if key not in self._taken:
                self.problem(f"{self.name(key)}: there is no such key")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

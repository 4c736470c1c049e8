"""What every bench is given, and what it may be told with --set."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

Value = TypeVar("Value")


@dataclass(slots=True)
class Settings:
    """Arguments of a bench's `run`.

    Attributes:
        work_dir: an empty folder for the bench's files, removed afterwards unless --keep.
        given: what --set named, as text.
        used: every option that the bench asked for and the value in force; goes into the JSON file.
    """

    work_dir: Path
    given: dict[str, str] = field(default_factory=dict)
    used: dict[str, object] = field(default_factory=dict)

    def integer(self, name: str, default: int) -> int:
        """An option of the bench; ValueError if --set gave something else than an integer."""
        return self._note(name, int(self.given.get(name, default)))

    def number(self, name: str, default: float) -> float:
        """An option of the bench, a number."""
        return self._note(name, float(self.given.get(name, default)))

    def text(self, name: str, default: str) -> str:
        """An option of the bench, any text."""
        return self._note(name, self.given.get(name, default))

    def unknown(self) -> set[str]:
        """Options that --set named and the bench never asked for; a typing error, most likely."""
        return set(self.given) - set(self.used)

    def _note(self, name: str, value: Value) -> Value:
        self.used[name] = value
        return value

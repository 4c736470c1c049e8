"""Field types made of others: arrays, maps, and what JSON can hold."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from tide_daemon.wire.fields import INT64_MAX, Field, FieldError, Str

INT64_MIN = -(2**63)
MAX_JSON_DEPTH = 12


@dataclasses.dataclass(frozen=True)
class Optional:
    """Null or what `item` allows."""

    item: Field

    @property
    def annotation(self) -> str:
        """The item's annotation, or None."""
        return f"{self.item.annotation} | None"

    def load(self, value: Any) -> Any:
        """None, or the item."""
        return None if value is None else self.item.load(value)

    def dump(self, value: Any) -> Any:
        """None, or the item."""
        return None if value is None else self.item.dump(value)


@dataclasses.dataclass(frozen=True)
class Array:
    """A tuple of items of one type; an array on the wire.

    Args:
        cut: sending more than `max_items` sends the last ones, instead of refusing.
    """

    item: Field
    max_items: int
    cut: bool = False

    @property
    def annotation(self) -> str:
        """tuple[item, ...]."""
        return f"tuple[{self.item.annotation}, ...]"

    def load(self, value: Any) -> tuple[Any, ...]:
        """A tuple of checked items; the error names the index."""
        return tuple(self._each(value, self.item.load))

    def dump(self, value: Any) -> list[Any]:
        """A list of checked items; the error names the index."""
        if self.cut and isinstance(value, list | tuple):
            value = value[-self.max_items :]
        return self._each(value, self.item.dump)

    def _each(self, value: Any, convert: Callable[[Any], Any]) -> list[Any]:
        if not isinstance(value, list | tuple):
            raise FieldError(f"must be an array, not {type(value).__name__}")
        if len(value) > self.max_items:
            raise FieldError(f"must have at most {self.max_items} items, not {len(value)}")
        items = []
        for index, item in enumerate(value):
            try:
                items.append(convert(item))
            except FieldError as error:
                raise FieldError(f"[{index}]: {error}") from None
        return items


@dataclasses.dataclass(frozen=True)
class Tuple:
    """A fixed number of items, each with its own type; an array on the wire."""

    items: tuple[Field, ...]

    @property
    def annotation(self) -> str:
        """tuple[first, second, ...]."""
        return f"tuple[{', '.join(item.annotation for item in self.items)}]"

    def load(self, value: Any) -> tuple[Any, ...]:
        """A tuple of checked items."""
        self._check_length(value)
        return tuple(item.load(each) for item, each in zip(self.items, value, strict=True))

    def dump(self, value: Any) -> list[Any]:
        """A list of checked items."""
        self._check_length(value)
        return [item.dump(each) for item, each in zip(self.items, value, strict=True)]

    def _check_length(self, value: Any) -> None:
        if not isinstance(value, list | tuple) or len(value) != len(self.items):
            raise FieldError(f"must be an array of {len(self.items)} items")


@dataclasses.dataclass(frozen=True)
class Map:
    """Text keys of at most 256 characters to items of one type."""

    item: Field
    max_items: int

    @property
    def annotation(self) -> str:
        """dict[str, item]."""
        return f"dict[str, {self.item.annotation}]"

    def load(self, value: Any) -> dict[str, Any]:
        """A new dict of checked items; the error names the key."""
        return self._each(value, self.item.load)

    def dump(self, value: Any) -> dict[str, Any]:
        """A new dict of checked items; the error names the key."""
        return self._each(value, self.item.dump)

    def _each(self, value: Any, convert: Callable[[Any], Any]) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise FieldError(f"must be a map, not {type(value).__name__}")
        if len(value) > self.max_items:
            raise FieldError(f"must have at most {self.max_items} entries, not {len(value)}")
        entries = {}
        for key, item in value.items():
            KEY.dump(key)
            try:
                entries[key] = convert(item)
            except FieldError as error:
                raise FieldError(f"[{key!r}]: {error}") from None
        return entries


KEY = Str(max_length=256)


@dataclasses.dataclass(frozen=True)
class Json:
    """Null, bool, int64, finite float, text, list or map with text keys, nested up to MAX_JSON_DEPTH.

    Tuples are refused, so that what is read back equals what was written.
    """

    annotation: str = "object"

    def load(self, value: Any) -> Any:
        """The value itself, once every part of it is checked."""
        _check_json(value, MAX_JSON_DEPTH)
        return value

    dump = load


def _check_json(value: Any, depth: int) -> None:
    if depth == 0:
        raise FieldError(f"must be nested at most {MAX_JSON_DEPTH} deep")
    if value is None or type(value) is bool:
        return
    if type(value) is int:
        if not INT64_MIN <= value <= INT64_MAX:
            raise FieldError("must hold 64-bit integers only")
    elif type(value) is float:
        if not math.isfinite(value):
            raise FieldError(f"must hold finite numbers only, not {value}")
    elif type(value) is str:
        _JSON_TEXT.dump(value)
    elif type(value) is list:
        for item in value:
            _check_json(item, depth - 1)
    elif type(value) is dict:
        for key, item in value.items():
            KEY.dump(key)
            _check_json(item, depth - 1)
    else:
        raise FieldError(f"must hold null, bool, int, float, text, lists and maps only, not {type(value).__name__}")


_JSON_TEXT = Str(max_length=65536)

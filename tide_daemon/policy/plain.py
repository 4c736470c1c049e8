"""Frozen dataclasses to plain maps (str, int, float, bool, None, list, dict) and back.

Events and instructions are journalled as such maps; replay reads them back and must get equal
objects. A float survives unchanged because maps carry it as a float, never as text of ours.
"""

import dataclasses
import types
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

_HINTS: dict[type, dict[str, Any]] = {}


def to_plain(value: Any) -> Any:
    """The value with dataclasses as dicts and tuples as lists.

    Raises:
        TypeError: the value holds something that has no plain form.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list)):
        return [to_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    raise TypeError(f"{type(value).__name__} has no plain form")


def from_plain(kind: type[T], value: Any) -> T:
    """An object of the dataclass `kind` from the map that to_plain made.

    Missing keys take the field's default, so that an older journal can still be read.

    Raises:
        ValueError: a key is unknown or missing, or a value has the wrong type.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{kind.__name__} wants a map, got {type(value).__name__}")
    hints = _HINTS.get(kind)
    if hints is None:
        hints = _HINTS[kind] = get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(value) - set(fields))
    if unknown:
        raise ValueError(f"{kind.__name__} has no field {', '.join(map(str, unknown))}")
    arguments = {
        name: _convert(hints[name], value[name], f"{kind.__name__}.{name}") for name in fields if name in value
    }
    try:
        return kind(**arguments)
    except TypeError as error:
        raise ValueError(f"{kind.__name__}: {error}") from None


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = get_origin(hint)
    if origin is Union or origin is types.UnionType:
        inner = [choice for choice in get_args(hint) if choice is not type(None)]
        return None if value is None else _convert(inner[0], value, where)
    if origin is tuple:
        return _convert_tuple(get_args(hint), value, where)
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where} wants a map, got {type(value).__name__}")
        return {str(key): _convert(get_args(hint)[1], item, where) for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return from_plain(hint, value)  # type: ignore[arg-type]
    # bool is an int to Python, but a flag is never a count; an int is a good float.
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"{where} wants {hint.__name__}, got {type(value).__name__}")
    return value


def _convert_tuple(choices: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{where} wants a list, got {type(value).__name__}")
    if len(choices) == 2 and choices[1] is Ellipsis:
        return tuple(_convert(choices[0], item, where) for item in value)
    if len(choices) != len(value):
        raise ValueError(f"{where} wants {len(choices)} items, got {len(value)}")
    return tuple(_convert(choice, item, where) for choice, item in zip(choices, value, strict=True))

"""Records as maps: checks every attribute of a dataclass on its way to the wire and back.

A record's field types are compared with its dataclass when kinds.py is imported, so the two cannot drift.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tide_daemon.wire.fields import Field, FieldError


class Struct:
    """A record or a part of one: a map on the wire, a frozen dataclass in the process.

    Fields with a default in the dataclass may be absent on the wire; others must be there. Entries
    that the record does not know are ignored, so that a newer peer may add optional ones.

    Args:
        record: the dataclass.
        fields: a field type for each of its attributes.
        check: called with the finished record; raises FieldError when attributes do not fit each other.

    Raises:
        TypeError: at import, when `fields` and the dataclass differ in names or annotations.
    """

    def __init__(self, record: type, fields: Mapping[str, Field], check: Callable[[Any], None] | None = None) -> None:
        self.record = record
        self.fields = dict(fields)
        self.check = check
        self.annotation = record.__name__
        attributes = dataclasses.fields(record)
        self.required = tuple(a.name for a in attributes if is_required(a))
        expected = {a.name: str(a.type) for a in attributes}
        declared = {name: field.annotation for name, field in fields.items()}
        if expected != declared:
            raise TypeError(f"{record.__name__}: fields {declared} are not the dataclass's {expected}")

    def load(self, value: Any) -> Any:
        """A checked record from a map."""
        if type(value) is not dict:
            raise FieldError(f"must be a map, not {type(value).__name__}")
        attributes = load_fields(self.fields, value, self.required)
        record = self.record(**attributes)
        if self.check is not None:
            self.check(record)
        return record

    def dump(self, value: Any) -> dict[str, Any]:
        """A map from a record, checked."""
        if type(value) is not self.record:
            raise FieldError(f"must be {self.record.__name__}, not {type(value).__name__}")
        entries = dump_fields(self.fields, value)
        if self.check is not None:
            self.check(value)
        return entries


def is_required(attribute: "dataclasses.Field[Any]") -> bool:
    """True if the dataclass gives the attribute no default."""
    return attribute.default is dataclasses.MISSING and attribute.default_factory is dataclasses.MISSING


def load_fields(fields: Mapping[str, Field], value: dict[Any, Any], required: Sequence[str]) -> dict[str, Any]:
    """Checked attributes by name; absent optional ones are left out.

    Raises:
        FieldError: a required entry is missing, or an entry is not what its field allows.
    """
    attributes = {}
    for name, field in fields.items():
        if name not in value:
            if name in required:
                raise FieldError(f"{name} is missing")
            continue
        try:
            attributes[name] = field.load(value[name])
        except FieldError as error:
            raise FieldError(f"{name}: {error}") from None
    return attributes


def dump_fields(fields: Mapping[str, Field], record: Any) -> dict[str, Any]:
    """A map of the record's attributes, each checked. Raises FieldError naming the attribute."""
    entries = {}
    for name, field in fields.items():
        try:
            entries[name] = field.dump(getattr(record, name))
        except FieldError as error:
            raise FieldError(f"{name}: {error}") from None
    return entries

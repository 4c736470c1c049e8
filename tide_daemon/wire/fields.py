"""Field types: what one value of a record may be, checked the same way before sending and after receiving.

`load` turns a decoded msgpack value into the record's value, `dump` does the reverse; both raise
FieldError saying what is wrong; whoever holds the name puts it in front. Here are single values;
containers.py has arrays and maps of them, structs.py makes records, kinds.py says which record has
which fields, and schemas/make.py writes JSON Schemas from them.
"""

import dataclasses
import math
import re
from typing import Any, ClassVar, Protocol

INT64_MAX = 2**63 - 1


class FieldError(ValueError):
    """A value is not what its field allows. The envelope turns it into WireError when it came from a peer."""


class Field(Protocol):
    """One kind of value."""

    @property
    def annotation(self) -> str:
        """How the dataclass annotates such a field."""
        ...

    def load(self, value: Any) -> Any:
        """The record's value from the wire's."""
        ...

    def dump(self, value: Any) -> Any:
        """The wire's value from the record's."""
        ...


@dataclasses.dataclass(frozen=True)
class Int:
    """An integer in low..high, both included."""

    low: int = 0
    high: int = INT64_MAX
    annotation: str = "int"

    def load(self, value: Any) -> int:
        """The value, if it is an int (bool is not) within bounds."""
        if type(value) is not int:
            raise FieldError(f"must be an integer, not {type(value).__name__}")
        if not self.low <= value <= self.high:
            raise FieldError(f"must be in {self.low}..{self.high}, not {value}")
        return value

    dump = load


@dataclasses.dataclass(frozen=True)
class Float:
    """A finite number in low..high, both included. An int is taken as a float."""

    low: float = 0.0
    high: float = math.inf
    annotation: str = "float"

    def load(self, value: Any) -> float:
        """The value as a float, if finite and within bounds."""
        if not isinstance(value, float):
            if type(value) is not int:
                raise FieldError(f"must be a number, not {type(value).__name__}")
            if not -(2**53) <= value <= 2**53:
                raise FieldError("must be a number that a float64 holds exactly")
        number = float(value)
        if not math.isfinite(number):
            raise FieldError(f"must be finite, not {number}")
        if not self.low <= number <= self.high:
            raise FieldError(f"must be in {self.low}..{self.high}, not {number}")
        return number

    dump = load


@dataclasses.dataclass(frozen=True)
class Bool:
    """True or False; numbers are refused."""

    annotation: str = "bool"

    def load(self, value: Any) -> bool:
        """The value, if it is a bool."""
        if type(value) is not bool:
            raise FieldError(f"must be true or false, not {type(value).__name__}")
        return value

    dump = load


@dataclasses.dataclass(frozen=True)
class Str:
    """Text of at most `max_length` characters; `pattern` must match all of it."""

    max_length: int
    pattern: str = ""
    annotation: str = "str"

    def load(self, value: Any) -> str:
        """The value, if it is text that can be encoded, within the length, matching the pattern."""
        if type(value) is not str:
            raise FieldError(f"must be text, not {type(value).__name__}")
        if len(value) > self.max_length:
            raise FieldError(f"must have at most {self.max_length} characters, not {len(value)}")
        if self.pattern and re.fullmatch(self.pattern, value) is None:
            raise FieldError(f"must match {self.pattern}, not {value[:80]!r}")
        return value

    def dump(self, value: Any) -> str:
        """The same, and refuses lone surrogates, which UTF-8 cannot carry."""
        text = self.load(value)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise FieldError(f"must be encodable as UTF-8: {error.reason}") from error
        return text


@dataclasses.dataclass(frozen=True)
class Text:
    """A sentence for people, of at most `max_length` characters. Sending cuts a longer one short.

    Reasons and problems quote other programs; one that is too long must not keep a report from leaving.
    """

    max_length: int
    annotation: str = "str"

    def load(self, value: Any) -> str:
        """The value, if it is text within the length."""
        return Str(self.max_length).load(value)

    def dump(self, value: Any) -> str:
        """The text, cut to the length, lone surrogates replaced."""
        if type(value) is not str:
            raise FieldError(f"must be text, not {type(value).__name__}")
        text = value if len(value) <= self.max_length else value[: self.max_length - 3] + "..."
        return text.encode("utf-8", "replace").decode()


@dataclasses.dataclass(frozen=True)
class Label:
    """The name of a traffic class: at most `max_length` of the characters in PATTERN.

    It comes from a client's request, so sending makes any text fit rather than refuse the record:
    other characters become "_", the end is cut off.
    """

    PATTERN: ClassVar[str] = "[A-Za-z0-9_.:/-]*"
    max_length: int
    annotation: str = "str"

    def load(self, value: Any) -> str:
        """The value, if it is a label."""
        return Str(self.max_length, self.PATTERN).load(value)

    def dump(self, value: Any) -> str:
        """The label that the text becomes."""
        if type(value) is not str:
            raise FieldError(f"must be text, not {type(value).__name__}")
        return re.sub(r"[^A-Za-z0-9_.:/-]", "_", value[: self.max_length])


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of a few words. A new word is a change of meaning and needs a new WIRE_VERSION."""

    words: tuple[str, ...]
    annotation: str = "str"

    def load(self, value: Any) -> str:
        """The value, if it is one of the words."""
        if type(value) is not str or value not in self.words:
            raise FieldError(f"must be one of {', '.join(self.words)}, not {str(value)[:80]!r}")
        return value

    dump = load


@dataclasses.dataclass(frozen=True)
class Bin:
    """Raw bytes, at most `max_bytes`. The annotation of a tensor's bytes is its numpy type."""

    max_bytes: int
    annotation: str = "bytes"

    def load(self, value: Any) -> bytes:
        """The value, if it is bytes within the limit."""
        if type(value) is not bytes:
            raise FieldError(f"must be binary, not {type(value).__name__}")
        if len(value) > self.max_bytes:
            raise FieldError(f"must have at most {self.max_bytes} bytes, not {len(value)}")
        return value

    dump = load

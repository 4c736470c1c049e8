"""What a setting is: default, unit, range and meaning, written once on the dataclass field.

Validation, the environment variable, the warning about roles and the reference (`tide-daemon config
--reference`) all come from this one definition. The sections themselves are in sections.py.
"""

import dataclasses
import math
import re
import shlex
import typing
from pathlib import Path

Value = str | int | float | bool | Path | None | tuple[str, ...] | tuple[int, ...]

_KINDS: dict[object, str] = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    Path | None: "a path",
    tuple[str, ...]: "a list of strings",
    tuple[int, ...]: "a list of integers",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Rules:
    """What is attached to a dataclass field by `setting`.

    Attributes:
        meaning: one or two sentences for the operator.
        unit: "s", "bytes", "rows"; "" for a pure number or a name.
        minimum, maximum: inclusive range; for lists, of every element.
        choices: the only values allowed, if any.
        pattern: (regular expression for the whole value, the same in words).
        required_for: roles that cannot start without it.
        effective_for: roles that read it; empty: those of the section.
        computed: in words, how the value is found when it is left empty.
        secret: never printed.
        reloads: takes effect at SIGHUP, without a restart.
    """

    meaning: str
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    pattern: tuple[str, str] | None = None
    required_for: tuple[str, ...] = ()
    effective_for: tuple[str, ...] = ()
    computed: str = ""
    secret: bool = False
    reloads: bool = False


def setting(
    default: Value,
    meaning: str,
    *,
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    pattern: tuple[str, str] | None = None,
    required_for: tuple[str, ...] = (),
    effective_for: tuple[str, ...] = (),
    computed: str = "",
    secret: bool = False,
    reloads: bool = False,
) -> typing.Any:
    """A dataclass field that is a setting; see Rules for the arguments."""
    rules = Rules(
        meaning, unit, minimum, maximum, choices, pattern, required_for, effective_for, computed, secret, reloads
    )
    return dataclasses.field(default=default, metadata={"rules": rules})


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """One setting of one section, as the loader and the reference see it."""

    section: str
    name: str
    annotation: object
    default: Value
    rules: Rules

    @property
    def key(self) -> str:
        """Dotted name, as in messages and --set: "bus.url"."""
        return f"{self.section}.{self.name}"

    @property
    def variable(self) -> str:
        """Environment variable that overrides it."""
        return f"TIDE_{self.section}_{self.name}".upper()

    @property
    def kind(self) -> str:
        """Its type in words."""
        return _KINDS[self.annotation]

    def allowed(self) -> str:
        """Range or choices in words, "" if anything of its type will do."""
        rules = self.rules
        if rules.choices:
            return "one of " + ", ".join(rules.choices)
        if rules.pattern is not None:
            return rules.pattern[1]
        low, high = rules.minimum, rules.maximum
        if low is not None and high is not None:
            return f"{show_number(low)} to {show_number(high)}"
        if low is not None:
            return f"at least {show_number(low)}"
        return f"at most {show_number(high)}" if high is not None else ""

    def from_text(self, text: str) -> Value:
        """The value of an environment variable or of --set.

        Lists of strings are split as a shell would, lists of integers at commas or blanks.

        Raises:
            ValueError: says what was expected; the key is not in the message.
        """
        try:
            if self.annotation is bool:
                return self.validate({"true": True, "1": True, "false": False, "0": False}[text.strip().lower()])
            if self.annotation is int:
                return self.validate(int(text, 10))
            if self.annotation is float:
                return self.validate(float(text))
            if self.annotation == tuple[int, ...]:
                return self.validate([int(word, 10) for word in re.split(r"[,\s]+", text.strip()) if word])
            if self.annotation == tuple[str, ...]:
                return self.validate(shlex.split(text))
        except (KeyError, ValueError) as error:
            if isinstance(error, SettingError):
                raise
            raise SettingError(f"{text!r} is not {self.kind}") from None
        return self.validate(text)

    def validate(self, value: object) -> Value:
        """The value in the field's own type.

        Raises:
            SettingError: wrong type or outside what is allowed; the key is not in the message.
        """
        checked = self._typed(value)
        elements = checked if isinstance(checked, tuple) else (checked,)
        for element in elements:
            self._check_range(element)
        return checked

    def _typed(self, value: object) -> Value:
        if self.annotation is str and isinstance(value, str):
            return value
        if self.annotation is bool and isinstance(value, bool):
            return value
        if self.annotation is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        if self.annotation is float and isinstance(value, int | float) and not isinstance(value, bool):
            if math.isfinite(value):
                return float(value)
            raise SettingError(f"{value!r} is not a finite number")
        if self.annotation == Path | None and isinstance(value, str | Path):
            return Path(value).expanduser().absolute() if str(value) else None
        if self.annotation == tuple[str, ...] and _is_list_of(value, str):
            return tuple(value)  # type: ignore[arg-type]
        if self.annotation == tuple[int, ...] and _is_list_of(value, int):
            return tuple(value)  # type: ignore[arg-type]
        raise SettingError(f"{value!r} is not {self.kind}")

    def _check_range(self, value: Value) -> None:
        rules = self.rules
        if isinstance(value, int | float) and not isinstance(value, bool):
            too_small = rules.minimum is not None and value < rules.minimum
            too_large = rules.maximum is not None and value > rules.maximum
            if too_small or too_large:
                unit = f" {rules.unit}" if rules.unit else ""
                raise SettingError(f"{show_number(value)}{unit} is outside the range: {self.allowed()}{unit}")
        if rules.choices and value not in rules.choices:
            raise SettingError(f"{value!r} is not {self.allowed()}")
        if rules.pattern is not None and value != "" and not re.fullmatch(rules.pattern[0], str(value)):
            raise SettingError(f"{value!r} is not {rules.pattern[1]}")


class SettingError(ValueError):
    """A value that a setting does not allow."""


def settings_of(section: str, cls: type) -> tuple[Setting, ...]:
    """The settings of a section's dataclass, in the order they are written."""
    hints = typing.get_type_hints(cls)
    return tuple(
        Setting(section, field.name, hints[field.name], typing.cast(Value, field.default), field.metadata["rules"])
        for field in dataclasses.fields(cls)
    )


def show_number(value: float) -> str:
    """A number as TOML writes it, long integers grouped: 1_000_000, 0.05."""
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):_}"
    return repr(float(value))


def _is_list_of(value: object, kind: type) -> bool:
    return isinstance(value, list | tuple) and all(
        isinstance(element, kind) and not isinstance(element, bool) for element in value
    )

"""Collects raw values from the file, the environment and --set, each with where it came from.

Later sources win: file, then environment, then flags. Problems are collected, not raised, so that the
operator sees all of them at once.
"""

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tide_daemon.config.fields import Setting, SettingError, Value
from tide_daemon.config.sections import SECTION_CLASSES, all_settings
from tide_daemon.errors import ConfigError

MAX_FILE_BYTES = 1 << 20


@dataclass(slots=True)
class Collected:
    """Checked values by dotted key, the origin of each, what is wrong, and the settings that were."""

    values: dict[str, Value] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    failed: set[str] = field(default_factory=set)

    def put(self, setting: Setting, value: object, origin: str, *, is_text: bool) -> None:
        """Check one value and keep it, or note what is wrong with it."""
        try:
            checked = setting.from_text(str(value)) if is_text else setting.validate(value)
        except SettingError as error:
            is_secret = setting.rules.secret or "@" in str(value)  # an address with a password in it
            reason = "the value is not allowed: " + setting.allowed() if is_secret else str(error)
            self.problems.append(f"{setting.key} ({origin}): {reason}")
            self.failed.add(setting.key)
            return
        self.values[setting.key], self.origins[setting.key] = checked, origin


def collect(path: Path | None, environ: Mapping[str, str], assignments: Iterable[str]) -> Collected:
    """Everything that the operator said.

    Args:
        path: the TOML file, None for none.
        environ: usually os.environ.
        assignments: "section.field=value" as given to --set.

    Raises:
        ConfigError: the file cannot be read or is not TOML; nothing else can be checked then.
    """
    known = {setting.key: setting for setting in all_settings()}
    collected = Collected()
    if path is not None:
        _from_file(collected, known, path)
    _from_environment(collected, known, environ)
    for assignment in assignments:
        _from_flag(collected, known, assignment)
    return collected


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ "; did you mean X?" or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _from_file(collected: Collected, known: Mapping[str, Setting], path: Path) -> None:
    for section, table in _read_toml(path).items():
        if section not in SECTION_CLASSES:
            hint = did_you_mean(section, SECTION_CLASSES)
            collected.problems.append(f"[{section}] (file {path}): there is no such section{hint}")
            continue
        if not isinstance(table, dict):
            collected.problems.append(f"{section} (file {path}): must be a section, [{section}]")
            continue
        for name, value in table.items():
            setting = known.get(f"{section}.{name}")
            if setting is None:
                hint = _hint(f"{section}.{name}", known)
                collected.problems.append(f"{section}.{name} (file {path}): there is no such setting{hint}")
                continue
            collected.put(setting, value, f"file {path}", is_text=False)


def _read_toml(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {path}: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"the configuration file {path} is over {MAX_FILE_BYTES} bytes")
    try:
        return tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration file {path} is not valid TOML: {error}") from error


def _from_environment(collected: Collected, known: Mapping[str, Setting], environ: Mapping[str, str]) -> None:
    by_variable = {setting.variable: setting for setting in known.values()}
    prefixes = tuple(f"TIDE_{section.upper()}_" for section in SECTION_CLASSES)
    for variable, text in sorted(environ.items()):
        setting = by_variable.get(variable)
        if setting is not None:
            collected.put(setting, text, f"environment {variable}", is_text=True)
        elif variable.startswith(prefixes):
            hint = did_you_mean(variable, by_variable)
            collected.problems.append(f"environment variable {variable}: there is no such setting{hint}")


def _from_flag(collected: Collected, known: Mapping[str, Setting], assignment: str) -> None:
    key, equals, text = assignment.partition("=")
    key = key.strip()
    if not equals:
        collected.problems.append(f"--set {assignment}: must be SECTION.FIELD=VALUE")
        return
    setting = known.get(key)
    if setting is None:
        collected.problems.append(f"--set {key}: there is no such setting{_hint(key, known)}")
        return
    collected.put(setting, text, "flag --set", is_text=True)


def _hint(key: str, known: Mapping[str, Setting]) -> str:
    """A close name, in the same section first; the right name in another section counts as close."""
    section, _, name = key.partition(".")
    elsewhere = [other for other, setting in known.items() if setting.name == name]
    if elsewhere:
        return f"; did you mean {elsewhere[0]}?"
    same_section = [other for other, setting in known.items() if setting.section == section]
    return did_you_mean(key, same_section) or did_you_mean(key, known)

"""The configuration as text: --check (what is in force and why) and --reference (a complete commented file)."""

import json
import textwrap
from pathlib import Path

from tide_daemon.addresses import show_addresses
from tide_daemon.api_keys import without_keys
from tide_daemon.config.fields import Setting, Value, show_number
from tide_daemon.config.load import Resolved
from tide_daemon.config.sections import SECTION_CLASSES, SECTION_ROLES, all_settings

HIDDEN = "(hidden)"


def reference() -> str:
    """A complete TOML file: every setting with its meaning, range and variable, commented out at its default."""
    blocks = [
        "# Every setting of tide-daemon at its default. Uncomment what you change.",
        "# Each can be overridden by the environment variable beside it, and by --set SECTION.FIELD=VALUE.",
    ]
    for section, cls in SECTION_CLASSES.items():
        roles = " Read by: " + ", ".join(SECTION_ROLES[section]) + "."
        blocks += ["", *_comment((cls.__doc__ or "").strip() + roles), f"[{section}]"]
        for setting in (s for s in all_settings() if s.section == section):
            blocks += ["", *_comment(_description(setting)), f"# {setting.name} = {to_toml(setting.default)}"]
    return "\n".join(blocks) + "\n"


def resolved(result: Resolved) -> str:
    """What is in force, section by section, and where each value came from."""
    lines = [f"roles: {', '.join(result.roles)}"]
    for section in SECTION_CLASSES:
        lines += ["", f"[{section}]"]
        for setting in (s for s in all_settings() if s.section == section):
            value = getattr(getattr(result.config, section), setting.name)
            shown = f"{setting.name} = {_without_secrets(setting, value)}"
            lines.append(f"{shown:<58} # {result.origins.get(setting.key, 'default')}")
    return "\n".join(lines) + "\n"


def to_toml(value: Value) -> str:
    """A value as TOML writes it; None, which TOML lacks, as ""."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return show_number(value)
    if isinstance(value, float):
        return show_number(value) + (".0" if value.is_integer() else "")
    if isinstance(value, tuple):
        return "[" + ", ".join(to_toml(element) for element in value) + "]"
    return json.dumps("" if value is None else str(value))


def _description(setting: Setting) -> str:
    facts = [setting.kind]
    if setting.rules.unit:
        facts.append(f"in {setting.rules.unit}")
    if setting.allowed():
        facts.append(setting.allowed())
    text = f"{setting.rules.meaning} ({', '.join(facts)}; {setting.variable})"
    if setting.rules.computed:
        text += f" Empty: {setting.rules.computed}."
    if setting.rules.reloads:
        text += " Takes effect at a reload (SIGHUP)."
    if setting.rules.required_for:
        text += f" Required for the role {', '.join(setting.rules.required_for)}."
    return text


def _without_secrets(setting: Setting, value: Value) -> str:
    if setting.rules.secret and value:
        return json.dumps(HIDDEN)
    if setting.key == "server.arguments" and isinstance(value, tuple):
        return to_toml(tuple(without_keys([str(word) for word in value])))
    if isinstance(value, str | Path):
        return show_addresses(to_toml(value), f"{HIDDEN}@")
    return to_toml(value)


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, width=110, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)

"""From sources to a Config: collect, fill in what is computed, check, report every problem at once."""

import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tide_daemon.config.checks import problems_of, warnings_of
from tide_daemon.config.fields import Value
from tide_daemon.config.sections import ROLES, SECTION_CLASSES, Config, all_settings
from tide_daemon.config.sources import collect, did_you_mean
from tide_daemon.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Resolved:
    """A checked configuration and how it came about.

    Attributes:
        origins: by dotted key: "file PATH", "environment NAME", "flag --set", "computed"; missing: the default.
        warnings: settings that have no effect in the chosen roles.
    """

    config: Config
    roles: tuple[str, ...]
    origins: dict[str, str]
    warnings: tuple[str, ...]


def parse_roles(text: str) -> tuple[str, ...]:
    """Roles from the command line, "all" for every one, in the order in which they are started.

    Raises:
        ConfigError: a name is unknown, or there is none.
    """
    words = [word for word in re.split(r"[,\s]+", text.strip()) if word]
    unknown = [word for word in words if word not in (*ROLES, "all")]
    if unknown:
        hint = did_you_mean(unknown[0], (*ROLES, "all"))
        raise ConfigError(f"--role {unknown[0]}: there is no such role{hint} (roles: {', '.join(ROLES)}, all)")
    if not words:
        raise ConfigError(f"--role: name one or several of {', '.join(ROLES)}, or all")
    return ROLES if "all" in words else tuple(role for role in ROLES if role in words)


def chosen_file(given: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The file of --config, else that of $TIDE_CONFIG, else none."""
    return given or (Path(environ["TIDE_CONFIG"]) if environ.get("TIDE_CONFIG") else None)


def load(
    roles: Sequence[str],
    path: Path | None = None,
    environ: Mapping[str, str] | None = None,
    assignments: Iterable[str] = (),
) -> Resolved:
    """The configuration for these roles.

    Args:
        path: TOML file, None for none.
        environ: variables that may override it; None for none.
        assignments: "section.field=value", as given to --set; they win.

    Raises:
        ConfigError: the message lists every problem found, one a line.
    """
    environ = environ or {}
    collected = collect(path, environ, assignments)
    values, origins = dict(collected.values), dict(collected.origins)
    for key, value in _computed(values, roles, environ).items():
        values[key], origins[key] = value, "computed"
    config = Config(
        **{
            section: cls(**{s.name: values[s.key] for s in all_settings() if s.section == section and s.key in values})
            for section, cls in SECTION_CLASSES.items()
        }
    )
    failed = tuple(f"{key}:" for key in collected.failed)  # one message a setting is enough
    problems = collected.problems + [p for p in problems_of(config, roles) if not p.startswith(failed)]
    if problems:
        raise ConfigError("\n".join(problems))
    said = {key: origin for key, origin in origins.items() if origin != "computed"}
    return Resolved(config, tuple(roles), origins, tuple(warnings_of(config, roles, said)))


def _computed(values: Mapping[str, Value], roles: Sequence[str], environ: Mapping[str, str]) -> dict[str, Value]:
    """Defaults that depend on the machine and on the roles, for what was left empty."""
    computed: dict[str, Value] = {}
    if not values.get("node.name"):
        computed["node.name"] = re.sub(r"[^a-z0-9-]", "-", socket.gethostname().lower())[:64] or "node"
    state_dir = values.get("node.state_dir")
    if not isinstance(state_dir, Path):
        state_dir = _default_state_dir(environ)
        computed["node.state_dir"] = state_dir
    if not values.get("node.run_dir"):
        runtime = environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
        computed["node.run_dir"] = Path(runtime) if runtime else state_dir / "run"
    if "server" in roles and values.get("trainer.device", "auto") == "auto":
        computed["trainer.device"] = "cpu"  # the GPU's memory is the server's
    return computed


def _default_state_dir(environ: Mapping[str, str]) -> Path:
    given = environ.get("STATE_DIRECTORY", "").split(":")[0]  # systemd separates several with colons
    if given:
        return Path(given)
    home = environ.get("XDG_STATE_HOME") or str(Path("~/.local/state").expanduser())
    return Path(home) / "tide-daemon"

"""What the plug-in is told: one environment variable and one JSON file in the directory it names.

`TIDE_ENGINE_DIR` is set by the launcher, or by whoever starts SGLang for a daemon to attach to.
Unset, the plug-in does nothing at all. The directory holds:

    plugin.json     settings, written before the engine starts; absent: defaults
    ctl-<dp>.sock   the control channel of each data-parallel rank (ctl-<dp>-<tp>.sock for tp ranks > 0)
    drafts/, log    the launcher's, see launcher.py
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final

from tide_daemon.errors import ConfigError

ENGINE_DIR: Final = "TIDE_ENGINE_DIR"
SETTINGS_FILE: Final = "plugin.json"
FEATURES: Final = ("capture", "swap", "steps", "timing", "draft_kv")
"""What the plug-in switches off one by one when its code fails."""
OPT_OUT_KEY: Final = "tide"
"""`custom_params` key of a request; "off" keeps every byte of it out of the ring."""
REQUEST_KEY: Final = "tide_request"
"""`custom_params` key of a request: 32 hex digits, random, that name its sample; see requests.py."""
WORKLOAD_KEY: Final = "tide_workload"
"""`custom_params` key of a request: label of its traffic class, up to 64 of [A-Za-z0-9_.:/-]."""


@dataclass(frozen=True, slots=True)
class PluginSettings:
    """Settings of the plug-in inside one engine.

    Attributes:
        ring_dir: where the ring file lies; tmpfs, or rows would go to a disk.
        ring_bytes: its size, 1 MiB to 64 GiB. Full, the newest rows are dropped.
        topk: log-probabilities of the target kept for a generated row, 0 to 64.
        collect: capture from the start; changed later over the control channel.
        sample_rate: share of requests captured, 0 to 1.
        max_rows: rows captured of one request, 0 for all.
        prompt_workloads: requests without a label get one by the beginning of their prompt, see prefixes.py.
        plain_every: drafting steps between two plain ones, 0 for none; see steps.py.
    """

    ring_dir: str = "/dev/shm"
    ring_bytes: int = 64 << 20
    topk: int = 8
    collect: bool = True
    sample_rate: float = 1.0
    max_rows: int = 0
    prompt_workloads: bool = True
    plain_every: int = 0

    def __post_init__(self) -> None:
        problems = []
        if not 1 << 20 <= self.ring_bytes <= 64 << 30:
            problems.append(f"ring_bytes is {self.ring_bytes}, allowed are 1 MiB to 64 GiB")
        if not 0 <= self.topk <= 64:
            problems.append(f"topk is {self.topk}, allowed are 0 to 64")
        if not 0.0 <= self.sample_rate <= 1.0:
            problems.append(f"sample_rate is {self.sample_rate}, allowed are 0 to 1")
        if self.max_rows < 0:
            problems.append(f"max_rows is {self.max_rows}, must not be negative")
        if self.plain_every < 0:
            problems.append(f"plain_every is {self.plain_every}, must not be negative")
        if problems:
            raise ConfigError("plug-in settings: " + "\n".join(problems))


def engine_dir() -> Path | None:
    """The directory that TIDE_ENGINE_DIR names, None when it is unset or empty."""
    value = os.environ.get(ENGINE_DIR, "")
    return Path(value) if value else None


def write_settings(directory: Path, settings: PluginSettings) -> None:
    """Write plugin.json."""
    (directory / SETTINGS_FILE).write_text(json.dumps(asdict(settings), indent=2) + "\n")


def read_settings(directory: Path) -> PluginSettings:
    """Read plugin.json; defaults when there is none.

    Raises:
        ConfigError: unreadable, an unknown field, a wrong type or range.
    """
    path = directory / SETTINGS_FILE
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        return PluginSettings()
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    known = {field.name: field.type for field in fields(PluginSettings)}
    if not isinstance(data, dict) or (unknown := sorted(set(data) - set(known))):
        raise ConfigError(f"{path}: not an object of {sorted(known)}" + (f"; unknown: {unknown}" if data else ""))
    allowed = {"sample_rate": (int, float)}
    for name, value in data.items():
        if type(value) not in allowed.get(name, (type(getattr(PluginSettings(), name)),)):
            raise ConfigError(f"{path}: {name} has the wrong type {type(value).__name__}")
    return PluginSettings(**data)


def ring_prefix(directory: Path) -> str:
    """Start of the ring file's name: the same for every life of this engine, different for every engine."""
    return f"tide-{hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:16]}-"


def control_socket(directory: Path, dp_rank: int, tp_rank: int = 0) -> Path:
    """The control channel of one rank."""
    return directory / (f"ctl-{dp_rank}.sock" if tp_rank == 0 else f"ctl-{dp_rank}-{tp_rank}.sock")

"""The whole configuration: a section per component, and which roles read it.

The sections know nothing of the components' own settings; roles/ and daemon.py carry values over.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields

from tide_daemon.config.daemon_sections import BusConfig, LogConfig, NodeConfig, StatusConfig
from tide_daemon.config.fields import Setting, settings_of
from tide_daemon.config.learning_sections import ControllerConfig, TrainerConfig
from tide_daemon.config.server_sections import CaptureConfig, DraftConfig, ServerConfig

ROLES = ("server", "trainer", "controller")


@dataclass(frozen=True, slots=True)
class Config:
    """Everything, resolved and checked once; trust it afterwards."""

    node: NodeConfig = field(default_factory=NodeConfig)
    bus: BusConfig = field(default_factory=BusConfig)
    draft: DraftConfig = field(default_factory=DraftConfig)
    capture: CaptureConfig = field(default_factory=CaptureConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    controller: ControllerConfig = field(default_factory=ControllerConfig)
    status: StatusConfig = field(default_factory=StatusConfig)
    log: LogConfig = field(default_factory=LogConfig)


SECTION_ROLES: dict[str, tuple[str, ...]] = {
    "node": ROLES,
    "bus": ROLES,
    "draft": ROLES,
    "capture": ("server",),
    "server": ("server",),
    "trainer": ("trainer",),
    "controller": ("controller",),
    "status": ROLES,
    "log": ROLES,
}

SECTION_CLASSES: dict[str, type] = {
    section.name: section.default_factory  # type: ignore[misc]
    for section in fields(Config)
}


def all_settings() -> Iterator[Setting]:
    """Every setting, section by section."""
    for section, cls in SECTION_CLASSES.items():
        yield from settings_of(section, cls)

"""Configuration: one TOML file, environment, flags; checked once, every problem in one message.

fields.py     what a setting is (default, unit, range, meaning)
*sections.py  the settings themselves
sources.py    file, environment and flags into raw values with their origin
checks.py     rules between settings, warnings
load.py       the way from sources to a Config
show.py       --check and --reference
"""

from tide_daemon.config.daemon_sections import BusConfig, LogConfig, NodeConfig, StatusConfig
from tide_daemon.config.learning_sections import ControllerConfig, TrainerConfig
from tide_daemon.config.load import Resolved, chosen_file, load, parse_roles
from tide_daemon.config.sections import ROLES, Config
from tide_daemon.config.server_sections import CaptureConfig, DraftConfig, ServerConfig

__all__ = [
    "ROLES",
    "BusConfig",
    "CaptureConfig",
    "Config",
    "ControllerConfig",
    "DraftConfig",
    "LogConfig",
    "NodeConfig",
    "Resolved",
    "ServerConfig",
    "StatusConfig",
    "TrainerConfig",
    "chosen_file",
    "load",
    "parse_roles",
]

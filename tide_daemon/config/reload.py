"""What may change while a daemon runs. The rest waits for a restart, and a reload that asks for it is refused whole.

Half a file in force would be worse than the old one: nobody could tell which settings are.
"""

from tide_daemon.config.load import Resolved
from tide_daemon.config.sections import all_settings
from tide_daemon.errors import ConfigError


def changed_settings(before: Resolved, after: Resolved) -> list[str]:
    """Dotted keys whose values differ; empty when nothing does.

    Raises:
        ConfigError: one of them can change at a restart only, or the roles differ.
    """
    changed = [
        setting
        for setting in all_settings()
        if getattr(getattr(before.config, setting.section), setting.name)
        != getattr(getattr(after.config, setting.section), setting.name)
    ]
    fixed = [setting.key for setting in changed if not setting.rules.reloads]
    if fixed:
        raise ConfigError(f"nothing was reloaded: {', '.join(fixed)} can change at a restart only")
    return [setting.key for setting in changed]

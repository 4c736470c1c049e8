"""A journal through the same code again: must give the same instructions. Pure.

Every reign begins with ControllerStarted, which holds the settings; entries before the first one
(an old journal loses its head) cannot be replayed and are counted.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tide_daemon.policy.controller import Controller
from tide_daemon.policy.events import ControllerStarted, event_from_map
from tide_daemon.policy.instructions import instruction_to_map
from tide_daemon.policy.settings import PolicySettings

Entry = tuple[dict[str, Any], tuple[dict[str, Any], ...]]
"""(event map, instruction maps) as journalled."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The first entry that replays to something else.

    Attributes:
        index: of the entry, from 0.
        journalled, replayed: instruction maps.
    """

    index: int
    event: dict[str, Any]
    journalled: tuple[dict[str, Any], ...]
    replayed: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Replayed:
    """How a replay went: entries without a beginning, entries compared, and the first difference if any."""

    num_skipped: int
    num_compared: int
    difference: Difference | None


def replay(entries: Iterable[Entry]) -> Replayed:
    """Feed a journal through the policy and stop at the first difference.

    Raises:
        ValueError: an entry is not one that this version of the policy could have written.
    """
    controller: Controller | None = None
    num_skipped = num_compared = 0
    for index, (event_map, journalled) in enumerate(entries):
        event = event_from_map(event_map)
        if isinstance(event, ControllerStarted):
            controller = Controller(PolicySettings.from_map(event.settings))
        if controller is None:
            num_skipped += 1
            continue
        replayed = tuple(instruction_to_map(item) for item in controller.handle(event))
        num_compared += 1
        if replayed != tuple(journalled):
            return Replayed(num_skipped, num_compared, Difference(index, event_map, tuple(journalled), replayed))
    return Replayed(num_skipped, num_compared, None)

"""Which server nodes are there, kept as they report: what it costs does not grow with the fleet.

A report moves its node to the end of a list ordered by when each was last heard of, so the silent ones
are at the front and are found without looking at the others. What the fleet as a whole needs to know
of its nodes is kept beside it: which of them gain by speculating, and which a rollout still waits for.
Those that fell silent go to a second such list, from which they are forgotten.
"""

import itertools
from collections import OrderedDict


class Roster:
    """The nodes heard of lately. Changed by the controller only.

    Attributes:
        paying: nodes whose draft pays.
        outstanding: nodes that have yet to report the draft that is being rolled out; an ordered set.
    """

    def __init__(self) -> None:
        self._heard_at: OrderedDict[str, float] = OrderedDict()
        self._silent: OrderedDict[str, float] = OrderedDict()
        self.paying: set[str] = set()
        self.outstanding: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._heard_at)

    def __contains__(self, name: str) -> bool:
        return name in self._heard_at

    def names(self) -> list[str]:
        """All of them, sorted."""
        return sorted(self._heard_at)

    def by_age(self) -> list[str]:
        """All of them, the one heard of longest ago first."""
        return list(self._heard_at)

    def heard(self, name: str, at: float) -> None:
        """A node reported; `at` never falls."""
        self._silent.pop(name, None)
        self._heard_at[name] = at
        self._heard_at.move_to_end(name)

    def expire(self, at: float, lost_after_s: float) -> None:
        """Leave out those that have been silent for longer than this."""
        while self._heard_at:
            name = next(iter(self._heard_at))
            if at - self._heard_at[name] <= lost_after_s:
                return
            self._silent[name] = self._heard_at.pop(name)
            self.paying.discard(name)
            self.outstanding.pop(name, None)

    def forget(self, at: float, forget_after_s: float) -> list[str]:
        """Those that expired and have been silent for longer than this; each is named once."""
        forgotten = list(itertools.takewhile(lambda name: at - self._silent[name] > forget_after_s, self._silent))
        for name in forgotten:
            del self._silent[name]
        return forgotten

    def set_pays(self, name: str, pays: bool) -> None:
        """Whether speculation pays on this node."""
        if pays:
            self.paying.add(name)
        else:
            self.paying.discard(name)

    def set_outstanding(self, name: str, outstanding: bool) -> None:
        """Whether a rollout waits for this node."""
        if outstanding:
            self.outstanding[name] = None
        else:
            self.outstanding.pop(name, None)

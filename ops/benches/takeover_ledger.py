"""What two controllers wrote and readers took, as the bench saw it, and what of it was lost or done twice. Pure.

Filled in the order of each stream. Definitions, with the fencing token of a reign and the sequence of an entry
within it as its *place*, and the generation of a node's desired state:

lost
    a place is missing: within one token the sequences of the journal are not 1, 2, 3, ...
    a decision did not arrive: a journalled SetServer or SetTrainer whose generation the node's desired state has not
        reached a while later, under whichever leader
    a decision without an explanation: desired state that no entry of its token in the journal asks for, by content
    a state was not handed over: a reign begins with another FleetState than the newest one before it

doubled
    a place is taken twice
    two led at once: an entry stands behind one with a higher token
    a version was judged twice
    one generation of a node was asked for with two contents
    a late write stands: desired state with a lower token is stored behind one with a higher token
    a reader took it: a node's own check (roles/convergence.py) let in a lower token than one it had seen
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from tide_daemon.wire.records import Decision, DesiredServer, DesiredTrainer

Desired = DesiredServer | DesiredTrainer
_SET = {"set_server": "node", "set_trainer": "trainer"}


@dataclass(slots=True)
class Ledger:
    """Fill with `journalled`, `desired` and `taken`; `lost` and `doubled` count what went wrong, by kind."""

    lost: Counter[str] = field(default_factory=Counter)
    doubled: Counter[str] = field(default_factory=Counter)
    num_decisions: int = 0
    num_reigns: int = 0
    highest_token: int = 0
    _places: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    _judged: Counter[int] = field(default_factory=Counter)
    _fleet: Any = None
    _asked: dict[str, int] = field(default_factory=dict)
    _contents: dict[tuple[str, int], Any] = field(default_factory=dict)
    _explained: set[tuple[str, int, int, Any]] = field(default_factory=set)
    _reached: dict[str, int] = field(default_factory=dict)
    _stored: dict[str, int] = field(default_factory=dict)
    _seen: list[tuple[str, int, int, Any]] = field(default_factory=list)
    _taken: dict[str, int] = field(default_factory=dict)

    def journalled(self, entry: Decision) -> None:
        """The next entry of the journal."""
        if entry.sequence in self._places[entry.fencing_token]:
            self.doubled["a place is taken twice"] += 1
        self._places[entry.fencing_token].add(entry.sequence)
        if entry.fencing_token < self.highest_token:
            self.doubled["two led at once"] += 1
            return  # refused by every reader of the journal: it says nothing about what follows
        if entry.fencing_token > self.highest_token:
            self.num_reigns += 1
        self.highest_token = entry.fencing_token
        if entry.event.get("event") == "controller_started" and self._fleet is not None:
            self.lost["a state was not handed over"] += entry.event.get("fleet") != self._fleet
        self.num_decisions += bool(entry.instructions)
        for instruction in entry.instructions:
            self._instruction(entry.fencing_token, instruction)

    def desired(self, record: Desired) -> None:
        """The next desired state that the broker stored."""
        name, generation, token = _name(record), record.generation, record.fencing_token
        self.doubled["a late write stands"] += token < self._stored.get(name, 0)
        self._stored[name] = max(token, self._stored.get(name, 0))
        self._reached[name] = max(generation, self._reached.get(name, 0))
        self._seen.append((name, generation, token, _content_of_record(record)))

    def taken(self, record: Desired) -> None:
        """A node's own check let a desired state in."""
        name = _name(record)
        self.doubled["a reader took it"] += record.fencing_token < self._taken.get(name, 0)
        self._taken[name] = max(record.fencing_token, self._taken.get(name, 0))

    def asked(self) -> dict[str, int]:
        """What has been journalled so far: the newest generation by node. See `arrived`."""
        return dict(self._asked)

    def arrived(self, asked: dict[str, int]) -> None:
        """What `asked` said a while ago must have arrived by now."""
        for name, generation in asked.items():
            if self._reached.get(name, 0) < generation:
                self.lost["a decision did not arrive"] += 1
                self._reached[name] = generation  # counted once

    def close(self) -> None:
        """The run is over: look at what needs all of it."""
        for places in self._places.values():
            self.lost["a place is missing"] += max(places) - len(places)
        for name, generation, token, content in self._seen:
            # A successor may carry out what its predecessor journalled last, under its own token.
            tokens = [other for other in self._places if other <= token]
            known = any((name, generation, other, content) in self._explained for other in tokens)
            self.lost["a decision without an explanation"] += not known

    def _instruction(self, token: int, instruction: dict[str, Any]) -> None:
        kind = str(instruction["instruction"])
        if kind == "judged" and not instruction.get("from_pool"):
            version = int(instruction["version"])
            self._judged[version] += 1
            self.doubled["a version was judged twice"] += self._judged[version] > 1
        elif kind == "fleet_moved":
            self._fleet = instruction["fleet"]
        elif kind in _SET:
            name = f"{_SET[kind]} {instruction[_SET[kind]]}"
            generation, content = int(instruction["generation"]), _content_of_map(instruction)
            known = self._contents.setdefault((name, generation), content)
            self.doubled["one generation of a node was asked for with two contents"] += known != content
            self._explained.add((name, generation, token, content))
            self._asked[name] = max(generation, self._asked.get(name, 0))


def _name(record: Desired) -> str:
    return f"node {record.node}" if isinstance(record, DesiredServer) else f"trainer {record.trainer}"


def _content_of_record(record: Desired) -> tuple[Any, ...]:
    if isinstance(record, DesiredServer):
        captured = (record.collect, record.sample_rate, record.preferred, record.preferred_rate)
        return (record.draft_version, record.draft_digest, record.steps_table, *captured)
    scored = (record.pool, record.pool_scoring, record.pool_requests)
    return (record.round, record.serving_version, record.serving_digest, *scored)


def _content_of_map(instruction: dict[str, Any]) -> tuple[Any, ...]:
    if instruction["instruction"] == "set_server":
        table = tuple((int(largest), int(steps)) for largest, steps in instruction["steps_table"])
        preferred = (tuple(instruction.get("preferred", ())), instruction.get("preferred_rate", 0.0))
        captured = (instruction["collect"], instruction["sample_rate"], *preferred)
        return (instruction["draft_version"], instruction["draft_digest"], table, *captured)
    pool = tuple((int(version), str(digest)) for version, digest in instruction.get("pool", ()))
    scored = (pool, instruction.get("pool_scoring", 0), instruction.get("pool_requests", 0))
    return (instruction["round"], instruction["serving_version"], instruction["serving_digest"], *scored)

"""What the policy answers. Each instruction carries the event that caused it, a sentence and the numbers.

SetServer and SetTrainer become desired state. Judged, Answered and FleetMoved go to the journal only:
they say why, and FleetMoved is what the next leader starts from.
"""

from dataclasses import dataclass
from typing import Any

from tide_daemon.policy.collection import CollectionState
from tide_daemon.policy.events import DraftName, FleetState, StepsTable
from tide_daemon.policy.plain import from_plain, to_plain


@dataclass(frozen=True, slots=True)
class SetServer:
    """Have a server node run this. `generation` grows by one with every change for this node.

    Attributes:
        preferred, preferred_rate: workloads of whose requests this share is captured, instead of `sample_rate`.
    """

    node: str
    generation: int
    draft_version: int
    draft_digest: str
    steps_table: StepsTable
    collect: bool
    sample_rate: float
    cause: str
    reason: str
    numbers: dict[str, float]
    preferred: tuple[str, ...] = ()
    preferred_rate: float = 0.0


@dataclass(frozen=True, slots=True)
class SetTrainer:
    """Have a trainer score `serving_version` as serving, and begin round `round` if it has not.

    Attributes:
        pool: earlier drafts that may be served again: whoever holds drafts keeps them.
        pool_scoring: number of a scoring of these against the serving draft that is wanted, 0 for none.
        pool_requests: how many requests it takes, those that were finished after it was asked for.
    """

    trainer: str
    generation: int
    round: int
    serving_version: int
    serving_digest: str
    cause: str
    reason: str
    numbers: dict[str, float]
    pool: tuple[DraftName, ...] = ()
    pool_scoring: int = 0
    pool_requests: int = 0


@dataclass(frozen=True, slots=True)
class Judged:
    """The gate's answer for one draft: "promote", "reject" or "need_more_data".

    Attributes:
        from_pool: it was served before; a new candidate otherwise.
    """

    version: int
    verdict: str
    cause: str
    reason: str
    numbers: dict[str, float]
    from_pool: bool = False


@dataclass(frozen=True, slots=True)
class FleetMoved:
    """Which draft the fleet serves, or the stage of a rollout, changed; or a copy of it was due.

    Attributes:
        collection: Algorithm 1's memory at this moment, for the next leader.
    """

    fleet: FleetState
    cause: str
    reason: str
    numbers: dict[str, float]
    collection: CollectionState | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to an operator's request; `granted` False: nothing was changed."""

    request: str
    granted: bool
    cause: str
    reason: str
    numbers: dict[str, float]


Instruction = SetServer | SetTrainer | Judged | Answered | FleetMoved

_KINDS: dict[str, type[Any]] = {
    "set_server": SetServer,
    "set_trainer": SetTrainer,
    "judged": Judged,
    "answered": Answered,
    "fleet_moved": FleetMoved,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def instruction_to_map(instruction: Instruction) -> dict[str, Any]:
    """Plain map of an instruction; its kind is under "instruction"."""
    return {"instruction": _NAMES[type(instruction)], **to_plain(instruction)}


def instruction_from_map(value: dict[str, Any]) -> Instruction:
    """Inverse of instruction_to_map. ValueError when the map is not one."""
    fields = dict(value)
    kind = _KINDS.get(str(fields.pop("instruction", "")))
    if kind is None:
        raise ValueError(f"unknown instruction {value.get('instruction')!r}")
    instruction: Instruction = from_plain(kind, fields)
    return instruction

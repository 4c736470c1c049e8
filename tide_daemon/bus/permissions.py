"""What each role's user may publish and subscribe to, derived from the topology. No I/O; see users.py for that.

Least privilege: a subject is here because a named call of the role needs it. Some things NATS cannot tell apart:

- STREAM.PURGE takes its filter in the body, so who may purge one draft may purge all of them. A trainer may, and a
  server the target's rows. A purged draft is gone for new nodes; those that run it have it on disk.
- What JetStream sends as an answer is held to nobody's permissions; therefore an account a user, see users.py.
- STREAM.MSG.DELETE names the message in the body: a trainer may erase every sample. It can withhold them anyway.
- CONSUMER.MSG.NEXT of another reader's short-lived consumer would be allowed, if its random name could be guessed.
- One user may write every version's parts and manifests: trainers number drafts among themselves. Desired state
  holds the digest, so a manifest that was overwritten is refused.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from tide_daemon.bus.topology import LEASE_SUBJECT, TRAINERS, Topology
from tide_daemon.wire import subjects

ROLES = ("server", "trainer", "controller", "operator", "admin")
"""The three roles of a daemon; `operator` for status, why, peek and drafts; `admin` for `admin init`."""


@dataclass(frozen=True, slots=True)
class Permissions:
    """Subjects with NATS wildcards. Everything else is denied."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


def inbox_prefix(roles: Iterable[str], name: str) -> str:
    """Where answers to a user come, so that no other may listen to them."""
    return f"_INBOX.{'-'.join(roles)}.{name}"


def permissions(roles: Iterable[str], name: str, model: str, topology: Topology) -> Permissions:
    """Of one user: a daemon with one or several roles on node `name`, an operator or an admin.

    Raises:
        ValueError: an unknown role, or a name that cannot be part of a subject.
    """
    roles = tuple(roles)
    unknown = [role for role in roles if role not in ROLES]
    if unknown or not roles:
        raise ValueError(f"roles are {', '.join(ROLES)}, not {', '.join(roles) or 'none'}")
    publish: list[str] = []
    for role in roles:
        publish += _looks(topology, model) if role != "admin" else []
        publish += _GRANTS[role](name, model, topology)
    return Permissions(tuple(sorted(set(publish))), (f"{inbox_prefix(roles, name)}.>",))


def _looks(topology: Topology, model: str) -> list[str]:
    """What every daemon asks at its start: whether streams and consumers are there."""
    return [
        *(f"$JS.API.STREAM.INFO.{stream.name}" for stream in topology.streams),
        *(f"$JS.API.CONSUMER.INFO.{consumer.stream}.{consumer.name}" for consumer in topology.consumers),
    ]


def _server(name: str, model: str, topology: Topology) -> list[str]:
    return [
        subjects.hidden(model, name),
        subjects.report(model, name, "server"),
        *_reads("TIDE_DRAFT", _any_draft(model)),
        *_follows("TIDE_CONTROL", subjects.control_server(model, name)),
        # The target's frozen rows, put there once by the first server; another target's are purged.
        subjects.all_target_rows(model),
        *_reads("TIDE_TARGET", subjects.all_target_rows(model)),
        "$JS.API.STREAM.PURGE.TIDE_TARGET",
        # Whose samples are to be forgotten: nothing more of them is sent.
        *_follows("TIDE_FORGET", subjects.all_forgets(model)),
        # Whether anybody leads: a node without a leader looks after its own steps.
        *_reads("KV_TIDE_LEASE", f"{LEASE_SUBJECT}.controller-{model}"),
    ]


def _trainer(name: str, model: str, topology: Topology) -> list[str]:
    chunks = topology.consumer(TRAINERS)
    return [
        subjects.report(model, name, "trainer"),
        f"$JS.API.CONSUMER.MSG.NEXT.{chunks.stream}.{chunks.name}",
        f"$JS.ACK.{chunks.stream}.{chunks.name}.>",
        *_follows("TIDE_CONTROL", subjects.control_trainer(model, name)),
        # Which drafts are in use anywhere, so that no such one is purged.
        *_follows("TIDE_CONTROL", subjects.all_control(model)),
        _any_draft(model),
        *_reads("TIDE_DRAFT", _any_draft(model)),
        *_follows("TIDE_DRAFT", subjects.all_manifests(model)),
        "$JS.API.STREAM.PURGE.TIDE_DRAFT",
        *_reads("TIDE_TARGET", subjects.all_target_rows(model)),
        *_forgets(name, model),
    ]


def _forgets(name: str, model: str) -> list[str]:
    """Deletes what is to be forgotten from the stream, and says so. The scan's consumer has a name of its own, so
    that the shared one cannot be changed or deleted."""
    reader = forget_reader(name)
    return [
        *_follows("TIDE_FORGET", subjects.all_forgets(model)),
        subjects.all_forgotten(model, name),
        *_reads("TIDE_FORGET", subjects.all_forgotten(model, name)),
        f"$JS.API.CONSUMER.CREATE.TIDE_HIDDEN.{reader}.{subjects.all_hidden(model)}",
        f"$JS.API.CONSUMER.MSG.NEXT.TIDE_HIDDEN.{reader}",
        f"$JS.API.CONSUMER.DELETE.TIDE_HIDDEN.{reader}",
        "$JS.API.STREAM.MSG.DELETE.TIDE_HIDDEN",
    ]


def forget_reader(trainer: str) -> str:
    """Name of the consumer by which a trainer looks for messages that are to be erased."""
    return f"forget-{trainer}"


def _controller(name: str, model: str, topology: Topology) -> list[str]:
    lease = f"{LEASE_SUBJECT}.controller-{model}"
    return [
        lease,
        *_reads("KV_TIDE_LEASE", lease),
        subjects.all_control(model),
        *_reads("TIDE_CONTROL", subjects.all_control(model)),
        subjects.journal(model),
        *_reads("TIDE_JOURNAL", subjects.journal(model)),
        *_follows("TIDE_JOURNAL", subjects.journal(model)),
        *_follows("TIDE_REPORT", subjects.all_reports(model, "server")),
        *_follows("TIDE_REPORT", subjects.all_reports(model, "trainer")),
        *_follows("TIDE_DRAFT", subjects.all_manifests(model)),
        *_follows("TIDE_OPERATOR", subjects.all_operator_requests(model)),
    ]


def _operator(name: str, model: str, topology: Topology) -> list[str]:
    """Reads all but hidden states, which reveal prompts. `drafts forget` purges what the controller let go."""
    return [
        subjects.all_operator_requests(model),
        subjects.all_forgets(model),
        *_follows("TIDE_FORGET", subjects.all_forgets(model)),
        *_follows("TIDE_FORGET", subjects.all_forgotten(model)),
        "$JS.API.STREAM.PURGE.TIDE_DRAFT",
        "$JS.API.DIRECT.GET.TIDE_JOURNAL",
        *_reads("TIDE_CONTROL", subjects.all_control(model)),
        *_follows("TIDE_CONTROL", subjects.all_control(model)),
        *_reads("TIDE_JOURNAL", subjects.journal(model)),
        *_follows("TIDE_JOURNAL", subjects.journal(model)),
        *_reads("TIDE_REPORT", subjects.all_reports(model)),
        *_follows("TIDE_REPORT", subjects.all_reports(model)),
        *_reads("TIDE_DRAFT", _any_draft(model)),
        *_follows("TIDE_DRAFT", subjects.all_manifests(model)),
        *_reads("KV_TIDE_LEASE", f"{LEASE_SUBJECT}.controller-{model}"),
    ]


def _admin(name: str, model: str, topology: Topology) -> list[str]:
    """Makes and changes streams and consumers, and reads no message."""
    return [
        *(
            f"$JS.API.STREAM.{verb}.{stream.name}"
            for stream in topology.streams
            for verb in ("INFO", "CREATE", "UPDATE")
        ),
        *(
            f"$JS.API.CONSUMER.{verb}.{consumer.stream}.{consumer.name}"
            for consumer in topology.consumers
            for verb in ("INFO", "DURABLE.CREATE")
        ),
    ]


_GRANTS = {
    "server": _server,
    "trainer": _trainer,
    "controller": _controller,
    "operator": _operator,
    "admin": _admin,
}


def _any_draft(model: str) -> str:
    return f"{subjects.PREFIX}.draft.{model}.*.*"


def _reads(stream: str, subject: str) -> list[str]:
    """The newest message of a subject: Bus.last."""
    return [f"$JS.API.DIRECT.GET.{stream}.{subject}"]


def _follows(stream: str, subject: str) -> list[str]:
    """A short-lived consumer: Bus.tail. The server holds the filter in the body to the one in the subject."""
    return [
        f"$JS.API.CONSUMER.CREATE.{stream}.*.{subject}",
        f"$JS.API.CONSUMER.MSG.NEXT.{stream}.*",
        f"$JS.API.CONSUMER.DELETE.{stream}.*",
    ]

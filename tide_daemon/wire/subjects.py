"""Every subject on the bus, built and parsed in one place, and the ids that make a retry harmless.

CHANNELS is the contract; schemas/asyncapi.yaml lists the same. Numbers in subjects are zero-padded
to a fixed width (versions and rows 8 digits, part indexes 5), so that sorting subjects as text sorts
them by number and each number has exactly one spelling.

Model names are [a-z0-9-]{1,64}, all other names [A-Za-z0-9_-]{1,64}: no dot, so a host name is
written with dashes. Builders raise ValueError for our own wrong names; `parse` raises WireError for a
subject that came from the broker.
"""

import hashlib
import re
from dataclasses import dataclass

from tide_daemon.errors import WireError
from tide_daemon.wire import records
from tide_daemon.wire.kinds import (
    MAX_PARTS,
    MAX_VERSION,
    MAX_VOCAB,
    MODEL_PATTERN,
    REQUEST_ID_PATTERN,
    TOKEN_PATTERN,
)
from tide_daemon.wire.records import Record

PREFIX = "tide.v1"
CHANNELS = {
    "hidden": "tide.v1.hidden.{model}.{node}",
    "report": "tide.v1.report.{model}.{node}.{role}",
    "draft_claim": "tide.v1.draft.{model}.{version}.claim",
    "draft_part": "tide.v1.draft.{model}.{version}.{part}",
    "draft_manifest": "tide.v1.draft.{model}.{version}.manifest",
    "target": "tide.v1.target.{model}.{tensor}.{first_row}",
    "control_server": "tide.v1.control.{model}.server.{node}",
    "control_trainer": "tide.v1.control.{model}.trainer.{node}",
    "journal": "tide.v1.journal.{model}",
    "operator": "tide.v1.operator.{model}.{request}",
    "forget": "tide.v1.forget.{model}.{request}",
    "forgotten": "tide.v1.forget.{model}.{request}.{node}",
}
ROLES = ("server", "trainer", "controller")
TENSORS = ("config", "embed_tokens", "last_layer", "lm_head", "norm")

_VERSION_DIGITS = 8
_PART_DIGITS = 5
_ROW_DIGITS = 8
_PARAMETER_PATTERNS = {
    "model": MODEL_PATTERN,
    "node": TOKEN_PATTERN,
    "role": "|".join(ROLES),
    "version": rf"[0-9]{{{_VERSION_DIGITS}}}",
    "part": rf"[0-9]{{{_PART_DIGITS}}}",
    "tensor": "|".join(TENSORS),
    "first_row": rf"[0-9]{{{_ROW_DIGITS}}}",
    "request": REQUEST_ID_PATTERN,
}


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed subject. Parameters that its channel does not have are None.

    Attributes:
        channel: key of CHANNELS.
        model: the target model's short name.
        node: server node, trainer or controller.
        role: "server", "trainer" or "controller" of a report.
        version: draft version, >= 1.
        part: index of a draft part.
        tensor, first_row: which slice of the target's tensors.
        request: id of an operator's request, or of the request whose samples are to be forgotten.
    """

    channel: str
    model: str
    node: str | None = None
    role: str | None = None
    version: int | None = None
    part: int | None = None
    tensor: str | None = None
    first_row: int | None = None
    request: str | None = None


def hidden(model: str, node: str) -> str:
    """Hidden-state chunks of one server node."""
    return f"{PREFIX}.hidden.{_model(model)}.{_token('node', node)}"


def report(model: str, node: str, role: str) -> str:
    """Reports of one node in one role: "server", "trainer" or "controller"."""
    return f"{PREFIX}.report.{_model(model)}.{_token('node', node)}.{_word('role', role, ROLES)}"


def draft_claim(model: str, version: int) -> str:
    """Where a version number is reserved, by compare-and-set with expected_last=0."""
    return f"{_draft(model, version)}.claim"


def draft_part(model: str, version: int, index: int) -> str:
    """One part of a draft's payload."""
    return f"{_draft(model, version)}.{_number('part', index, MAX_PARTS - 1, _PART_DIGITS)}"


def draft_manifest(model: str, version: int) -> str:
    """The manifest, published after all parts."""
    return f"{_draft(model, version)}.manifest"


def target_rows(model: str, tensor: str, first_row: int) -> str:
    """The slice of a target's frozen tensor that begins at `first_row`."""
    row = _number("first_row", first_row, MAX_VOCAB - 1, _ROW_DIGITS)
    return f"{PREFIX}.target.{_model(model)}.{_word('tensor', tensor, TENSORS)}.{row}"


def control_server(model: str, node: str) -> str:
    """Desired state of a server node."""
    return f"{PREFIX}.control.{_model(model)}.server.{_token('node', node)}"


def control_trainer(model: str, trainer: str) -> str:
    """Desired state of a trainer."""
    return f"{PREFIX}.control.{_model(model)}.trainer.{_token('trainer', trainer)}"


def journal(model: str) -> str:
    """Every decision about a model."""
    return f"{PREFIX}.journal.{_model(model)}"


def operator_request(model: str, request_id: str) -> str:
    """One request of an operator."""
    return f"{PREFIX}.operator.{_model(model)}.{_request(request_id)}"


def forget(model: str, request_id: str) -> str:
    """That the samples of one request are to be forgotten."""
    return f"{PREFIX}.forget.{_model(model)}.{_request(request_id)}"


def forgotten(model: str, request_id: str, trainer: str) -> str:
    """What a trainer has erased of it."""
    return f"{forget(model, request_id)}.{_token('trainer', trainer)}"


def all_hidden(model: str) -> str:
    """Filter: chunks of every node."""
    return f"{PREFIX}.hidden.{_model(model)}.*"


def all_reports(model: str, role: str | None = None) -> str:
    """Filter: reports of every node, of one role or of all."""
    return f"{PREFIX}.report.{_model(model)}.*.{'*' if role is None else _word('role', role, ROLES)}"


def all_claims(model: str) -> str:
    """Filter: the claim of every version."""
    return f"{PREFIX}.draft.{_model(model)}.*.claim"


def all_manifests(model: str) -> str:
    """Filter: the manifest of every version."""
    return f"{PREFIX}.draft.{_model(model)}.*.manifest"


def all_of_draft(model: str, version: int) -> str:
    """Filter: claim, parts and manifest of one version, to read or to purge."""
    return f"{_draft(model, version)}.*"


def all_target_rows(model: str, tensor: str | None = None) -> str:
    """Filter: slices of one of the target's tensors, or of all."""
    return f"{PREFIX}.target.{_model(model)}.{'*' if tensor is None else _word('tensor', tensor, TENSORS)}.*"


def all_operator_requests(model: str) -> str:
    """Filter: every operator's request."""
    return f"{PREFIX}.operator.{_model(model)}.*"


def all_forgets(model: str) -> str:
    """Filter: every request that is to be forgotten."""
    return f"{PREFIX}.forget.{_model(model)}.*"


def all_forgotten(model: str, trainer: str | None = None) -> str:
    """Filter: what one trainer has erased, or all have."""
    return f"{PREFIX}.forget.{_model(model)}.*.{'*' if trainer is None else _token('trainer', trainer)}"


def all_control(model: str) -> str:
    """Filter: desired state of every server node and trainer."""
    return f"{PREFIX}.control.{_model(model)}.*.*"


def parse(subject: str) -> Address:
    """The inverse of the builders.

    Raises:
        WireError: not one of CHANNELS, or a name or number not as written above.
    """
    for channel, pattern in _CHANNEL_PATTERNS.items():
        match = pattern.fullmatch(subject)
        if match is None:
            continue
        words = match.groupdict()
        numbers = {name: int(words.pop(name)) for name in ("version", "part", "first_row") if name in words}
        if numbers.get("version") == 0:
            break
        return Address(channel, **words, **numbers)  # type: ignore[arg-type]  # names are CHANNELS' parameters
    raise WireError(f"{subject[:200]!r} is not a subject of {PREFIX}")


def subject_of(model: str, record: Record) -> str:
    """The one subject that a record may be published on.

    Raises:
        ValueError: the record belongs to another model, or a name in it cannot be part of a subject.
    """
    spec = getattr(record, "spec", None)
    if spec is not None and spec.model != model:
        raise ValueError(f"the record belongs to model {spec.model!r}, not {model!r}")
    match record:
        case records.HiddenChunk():
            return hidden(model, record.node)
        case records.DraftManifest():
            return draft_manifest(model, record.version)
        case records.DraftPart():
            return draft_part(model, record.version, record.index)
        case records.DraftClaim():
            return draft_claim(model, record.version)
        case records.NodeReport():
            return report(model, record.node, "server")
        case records.TrainerReport():
            return report(model, record.trainer, "trainer")
        case records.DesiredServer():
            return control_server(model, record.node)
        case records.DesiredTrainer():
            return control_trainer(model, record.trainer)
        case records.Decision():
            return journal(model)
        case records.TargetRows():
            return target_rows(model, record.name, record.first_row)
        case records.OperatorRequest():
            return operator_request(model, record.request_id)
        case records.ForgetSamples():
            return forget(model, record.request_id)
        case records.SamplesForgotten():
            return forgotten(model, record.request_id, record.trainer)


def verify(subject: str, record: Record) -> None:
    """Return if the record may stand on the subject it was read from.

    Permissions of the broker are per subject, so that a record that speaks for another node or
    version than its subject is a peer overstepping them.

    Raises:
        WireError: it may not.
    """
    address = parse(subject)
    try:
        expected = subject_of(address.model, record)
    except ValueError as error:
        raise WireError(f"on {subject}: {error}") from None
    if subject != expected:
        raise WireError(f"{type(record).__name__} on {subject} belongs on {expected}")


def message_id(model: str, record: Record) -> str:
    """The Nats-Msg-Id of a record: the same for a retry, another for anything else.

    It is the record's subject and what tells apart the records of that subject. Sequences begin again
    when a process restarts, so they come with the record's own time; contents come with a digest, so
    that a second, different content under one name is never swallowed as a duplicate.

    Raises:
        ValueError: as `subject_of`.
    """
    return f"{subject_of(model, record)}:{_identity(record)}"


def request_of_chunk(message_id: str) -> str | None:
    """The request whose chunk has this message id, None if it is not a chunk's: told without reading the chunk."""
    subject, colon, identity = message_id.partition(":")
    request_id, dot, _ = identity.partition(".")
    is_chunk = colon and dot and subject.startswith(f"{PREFIX}.hidden.")
    return request_id if is_chunk and re.fullmatch(REQUEST_ID_PATTERN, request_id) else None


def _identity(record: Record) -> str:
    match record:
        case records.HiddenChunk():
            return f"{record.request_id}.{record.chunk_index}"
        case records.DraftManifest():
            return _digest("".join((record.content_digest, *(part.digest for part in record.parts))).encode())
        case records.DraftPart() | records.TargetRows():
            return _digest(record.data)
        case records.DraftClaim():
            return f"{record.trainer}.{record.content_digest[:32]}"
        case records.NodeReport() | records.TrainerReport():
            return f"{record.sequence}.{_ms(record.at)}"
        case records.DesiredServer() | records.DesiredTrainer():
            return f"{record.fencing_token}.{record.generation}.{_ms(record.at)}"
        case records.OperatorRequest():
            return record.action
        case records.ForgetSamples():
            return str(_ms(record.at))
        case records.SamplesForgotten():
            return f"{record.num_stored}.{record.num_streamed}.{_ms(record.at)}"
        case records.Decision():
            return f"{record.controller}.{record.fencing_token}.{record.sequence}.{_ms(record.at)}"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _draft(model: str, version: int) -> str:
    if version == records.NO_DRAFT:
        raise ValueError("version 0 means no draft and has no subject")
    return f"{PREFIX}.draft.{_model(model)}.{_number('version', version, MAX_VERSION, _VERSION_DIGITS)}"


def _model(model: str) -> str:
    if re.fullmatch(MODEL_PATTERN, model) is None:
        raise ValueError(f"model must match {MODEL_PATTERN}, not {model!r}")
    return model


def _request(request_id: str) -> str:
    if re.fullmatch(REQUEST_ID_PATTERN, request_id) is None:
        raise ValueError(f"request_id must match {REQUEST_ID_PATTERN}, not {request_id!r}")
    return request_id


def _token(name: str, value: str) -> str:
    if re.fullmatch(TOKEN_PATTERN, value) is None:
        raise ValueError(f"{name} must match {TOKEN_PATTERN} (no dots: write a host name with dashes), not {value!r}")
    return value


def _word(name: str, value: str, words: tuple[str, ...]) -> str:
    if value not in words:
        raise ValueError(f"{name} must be one of {', '.join(words)}, not {value!r}")
    return value


def _number(name: str, value: int, largest: int, digits: int) -> str:
    if not 0 <= value <= largest:
        raise ValueError(f"{name} must be in 0..{largest}, not {value}")
    return f"{value:0{digits}d}"


def _channel_pattern(template: str) -> re.Pattern[str]:
    words = re.split(r"\{(\w+)\}", template)  # text and parameter names in turn
    pattern = "".join(
        re.escape(word) if index % 2 == 0 else f"(?P<{word}>{_PARAMETER_PATTERNS[word]})"
        for index, word in enumerate(words)
    )
    return re.compile(pattern, re.ASCII)


_CHANNEL_PATTERNS = {channel: _channel_pattern(template) for channel, template in CHANNELS.items()}

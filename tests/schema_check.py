"""Holds live bytes against schemas/: for tests that read messages of a running system."""

import json
from functools import cache
from typing import Any

import jsonschema

from schemas.make import FOLDER, json_view
from tide_daemon.wire.envelope import decode, decode_map
from tide_daemon.wire.records import Record


@cache
def validator(kind: str) -> Any:
    """The validator of schemas/messages/{kind}.json."""
    schema = json.loads((FOLDER / "messages" / f"{kind}.json").read_text())
    return jsonschema.Draft202012Validator(schema)


def assert_valid(data: bytes) -> Record:
    """The record in an envelope, which decodes and is what its published schema says.

    Raises:
        WireError: the bytes are not a valid envelope.
        AssertionError: the map is not what its JSON Schema allows; the message lists every violation.
    """
    header, entries = decode_map(data)
    violations = [
        f"{error.json_path}: {error.message}" for error in validator(header.kind).iter_errors(json_view(entries))
    ]
    assert not violations, f"{header.kind} is not what its schema says: {violations}"
    unknown = entries.keys() - validator(header.kind).schema["properties"].keys()
    assert not unknown, f"{header.kind} carries {sorted(unknown)}, which its schema lacks"
    return decode(data)

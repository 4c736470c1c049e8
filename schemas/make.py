"""Writes schemas/messages/ and schemas/golden/ from the code: `python -m schemas.make`.

A JSON Schema describes the msgpack map inside an envelope, with binary values as base64 text. Golden
files are examples.py encoded, each beside its map as JSON. Existing .bin files are left alone, since
they stand for peers built earlier; delete one to write it anew.
"""

import base64
import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

from schemas.examples import EXAMPLES
from tide_daemon.wire import chunk, containers, fields, kinds
from tide_daemon.wire.envelope import decode_map, encode
from tide_daemon.wire.structs import Struct

FOLDER = Path(__file__).parent


def json_view(value: object) -> Any:
    """A decoded map as JSON can hold it: bytes become base64 text, all else stays."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, list):
        return [json_view(item) for item in value]
    if isinstance(value, dict):
        return {key: json_view(item) for key, item in value.items()}
    return value


def message_schema(kind: kinds.Kind) -> dict[str, Any]:
    """The JSON Schema (2020-12) of one kind's map."""
    definitions: dict[str, Any] = {}
    if kind.struct is not None:
        described = _map_schema(kind.record, kind.struct.fields, kind.struct.required, definitions)
    else:
        wire_fields = kinds.HIDDEN_CHUNK_FIELDS | kinds.HIDDEN_CHUNK_SIZES
        described = _map_schema(kind.record, wire_fields, chunk.REQUIRED, definitions)
        described["properties"]["num_rows"]["description"] = "n, rows of every tensor."
        described["properties"]["num_topk"]["description"] = "k, log-probabilities a row."
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"tide.v1/{kind.name}.json",
        "title": kind.name,
        "$comment": f"Written by schemas/make.py. Envelope kind code {kind.code}, at most {kind.max_bytes} bytes.",
        **described,
    }
    if definitions:
        schema["$defs"] = definitions
    return schema


def _map_schema(
    record: type, entries: dict[str, fields.Field], required: tuple[str, ...], definitions: dict[str, Any]
) -> dict[str, Any]:
    summary, descriptions = read_docstring(record)
    properties = {}
    for name, field in entries.items():
        schema = _field_schema(field, definitions)
        if name in descriptions and "$ref" not in schema:
            schema["description"] = descriptions[name]
        properties[name] = schema
    return {"description": summary, "type": "object", "properties": properties, "required": list(required)}


def _field_schema(field: fields.Field, definitions: dict[str, Any]) -> dict[str, Any]:
    match field:
        case fields.Int(low, high):
            return {"type": "integer", "minimum": low, "maximum": high}
        case fields.Float(low, high):
            bounds = {"minimum": low, "maximum": high}
            return {"type": "number", **{name: bound for name, bound in bounds.items() if math.isfinite(bound)}}
        case fields.Bool():
            return {"type": "boolean"}
        case fields.Str(max_length, pattern):
            schema: dict[str, Any] = {"type": "string", "maxLength": max_length}
            return schema | ({"pattern": f"^(?:{pattern})$"} if pattern else {})
        case fields.Text(max_length):
            return {"type": "string", "maxLength": max_length}
        case fields.Label(max_length):
            return {"type": "string", "maxLength": max_length, "pattern": f"^{field.PATTERN}$"}
        case fields.Choice(words):
            return {"enum": list(words)}
        case fields.Bin(max_bytes):
            return {"type": "string", "contentEncoding": "base64", "maxLength": 4 * math.ceil(max_bytes / 3)}
        case containers.Optional(item):
            return {"anyOf": [_field_schema(item, definitions), {"type": "null"}]}
        case containers.Array(item, max_items):
            return {"type": "array", "items": _field_schema(item, definitions), "maxItems": max_items}
        case containers.Tuple(items):
            prefix = [_field_schema(item, definitions) for item in items]
            return {"type": "array", "prefixItems": prefix, "items": False, "minItems": len(items)}
        case containers.Map(item, max_items):
            values = _field_schema(item, definitions)
            return {"type": "object", "additionalProperties": values, "maxProperties": max_items}
        case containers.Json():
            return {}
        case Struct():
            name = field.record.__name__
            if name not in definitions:
                definitions[name] = _map_schema(field.record, field.fields, field.required, definitions)
            return {"$ref": f"#/$defs/{name}"}
        case _:
            raise TypeError(f"no JSON Schema for {field}")


def read_docstring(record: type) -> tuple[str, dict[str, str]]:
    """(first paragraph, text by attribute) of a dataclass whose docstring has an Attributes section."""
    lines = [line.strip() for line in (record.__doc__ or "").splitlines()]
    summary = " ".join("\n".join(lines).split("\n\n")[0].split())
    texts: dict[str, str] = {}
    names: list[str] = []
    start = lines.index("Attributes:") + 1 if "Attributes:" in lines else len(lines)
    for line in lines[start:]:
        entry = re.fullmatch(r"([\w*]+(?:, [\w*]+)*): (.+)", line)
        if entry:
            patterns = [name.replace("*", ".*") for name in entry[1].split(", ")]
            names = [a.name for a in dataclasses.fields(record) if any(re.fullmatch(p, a.name) for p in patterns)]
            texts |= dict.fromkeys(names, entry[2])
        elif line:
            texts |= {name: f"{texts[name]} {line}" for name in names}
    return summary, texts


def schema_text(kind: kinds.Kind) -> str:
    """The text of schemas/messages/{kind}.json."""
    return json.dumps(message_schema(kind), indent=2) + "\n"


def main() -> None:
    """Write both folders."""
    for kind in kinds.KINDS:
        path = FOLDER / "messages" / f"{kind.name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(schema_text(kind))
    for name, record in EXAMPLES.items():
        path = FOLDER / "golden" / f"{name}.bin"
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            path.write_bytes(encode(record))
        header, entries = decode_map(path.read_bytes())
        document = {"kind": header.kind, "map": json_view(entries)}
        path.with_suffix(".json").write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()

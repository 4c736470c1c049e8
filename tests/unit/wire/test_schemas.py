import dataclasses
import json
import re
from typing import Any

import jsonschema
import pytest
import yaml

from schemas.examples import EXAMPLES
from schemas.make import FOLDER, json_view, schema_text
from tests.schema_check import assert_valid, validator
from tests.unit.wire.equality import assert_same
from tests.unit.wire.forge import envelope_of_map
from tide_daemon.wire import envelope, kinds, subjects
from tide_daemon.wire.envelope import decode, decode_map, encode, peek_kind

GOLDEN = sorted(path.stem for path in (FOLDER / "golden").glob("*.bin"))


@pytest.fixture(scope="module")
def asyncapi() -> dict[str, Any]:
    document = yaml.safe_load((FOLDER / "asyncapi.yaml").read_text())
    assert isinstance(document, dict)
    return document


def test_every_example_is_a_golden_file() -> None:
    assert sorted(EXAMPLES) == GOLDEN


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes_decode_to_exactly_their_json_and_their_record(name: str) -> None:
    data = (FOLDER / "golden" / f"{name}.bin").read_bytes()
    document = json.loads((FOLDER / "golden" / f"{name}.json").read_text())
    header, entries = decode_map(data)
    assert document == {"kind": header.kind, "map": json_view(entries)}
    assert_same(decode(encode(EXAMPLES[name])), decode(data))
    assert_valid(data)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes_encoded_again_decode_to_the_same(name: str) -> None:
    record = decode((FOLDER / "golden" / f"{name}.bin").read_bytes())
    assert_same(record, decode(encode(record)))


@pytest.mark.parametrize("kind", kinds.KINDS, ids=lambda kind: kind.name)
def test_message_schemas_are_what_the_code_says(kind: kinds.Kind) -> None:
    """After a change of fields run python -m schemas.make and read the difference."""
    text = (FOLDER / "messages" / f"{kind.name}.json").read_text()
    assert text == schema_text(kind)
    jsonschema.Draft202012Validator.check_schema(json.loads(text))


def test_there_is_a_schema_for_every_kind_and_no_other() -> None:
    assert {path.stem for path in (FOLDER / "messages").iterdir()} == {kind.name for kind in kinds.KINDS}


@pytest.mark.parametrize("kind", kinds.KINDS, ids=lambda kind: kind.name)
def test_every_field_is_in_its_schema_and_the_other_way_round(kind: kinds.Kind) -> None:
    properties = set(validator(kind.name).schema["properties"])
    shapes = set(kinds.HIDDEN_CHUNK_SIZES) if kind.struct is None else set()
    assert properties - shapes == {field.name for field in dataclasses.fields(kind.record)}


def test_the_check_sees_a_map_that_decodes_but_is_not_described() -> None:
    data = encode(EXAMPLES["draft_claim"])
    assert_valid(data)
    with pytest.raises(AssertionError, match="carries \\['extra'\\]"):
        assert_valid(envelope_of_map(decode_map(data)[1] | {"extra": 1}, 4))


def test_channels_are_those_of_the_subjects_module(asyncapi: dict[str, Any]) -> None:
    addresses = {name: channel["address"] for name, channel in asyncapi["channels"].items()}
    assert addresses == subjects.CHANNELS
    for channel in asyncapi["channels"].values():
        assert set(channel["parameters"]) == set(re.findall(r"\{(\w+)\}", channel["address"]))


def test_messages_are_on_the_channels_that_records_are_published_on(asyncapi: dict[str, Any]) -> None:
    documented = {(name, message) for name, channel in asyncapi["channels"].items() for message in channel["messages"]}
    published = {
        (subjects.parse(subjects.subject_of("smollm2-135m", record)).channel, peek_kind(encode(record)))
        for record in EXAMPLES.values()
    }
    assert documented == published


def references(node: object) -> list[str]:
    if isinstance(node, dict):
        return [node["$ref"]] if "$ref" in node else [r for value in node.values() for r in references(value)]
    return [r for item in node for r in references(item)] if isinstance(node, list) else []


def test_every_reference_leads_somewhere(asyncapi: dict[str, Any]) -> None:
    for reference in references(asyncapi):
        if reference.startswith("./"):
            assert (FOLDER / reference).is_file(), reference
            continue
        node: Any = asyncapi
        for word in reference.removeprefix("#/").split("/"):
            assert word in node, reference
            node = node[word]


def test_every_message_has_a_sender_and_a_receiver(asyncapi: dict[str, Any]) -> None:
    actions: dict[str, set[str]] = {}
    for name, operation in asyncapi["operations"].items():
        (message,) = (reference["$ref"].split("/")[-1] for reference in operation["messages"])
        assert name == f"{operation['tags'][0]['name']}_{operation['action']}_{message}"
        assert operation["messages"][0]["$ref"].startswith(operation["channel"]["$ref"])
        actions.setdefault(message, set()).add(operation["action"])
    assert actions == {kind.name: {"send", "receive"} for kind in kinds.KINDS}


def test_the_byte_table_names_every_code_limit_and_subject() -> None:
    text = (FOLDER / "envelope.md").read_text()
    rows = dict(re.findall(r"^\| (\w+) \| (\d+ \| \d+ [KM]iB \| `[^`]+`) \|$", text, re.MULTILINE))
    for kind in kinds.KINDS:
        code, limit, subject = rows.pop(kind.name).split(" | ")
        number, unit = limit.split()
        assert int(code) == kind.code
        assert int(number) << {"KiB": 10, "MiB": 20}[unit] == kind.max_bytes
        assert any(
            subject.strip("`") in (template, template.replace("{role}", role))
            for template in subjects.CHANNELS.values()
            for role in ("server", "trainer")
        )
    assert not rows
    assert f"{envelope.MAX_OBJECTS:,} values" in text
    assert f"at most {envelope.MAX_DEPTH} deep" in text

import dataclasses

import pytest

from schemas.examples import EXAMPLES
from tide_daemon.errors import WireError
from tide_daemon.wire import records, subjects
from tide_daemon.wire.subjects import CHANNELS, Address, message_id, parse, subject_of, verify

MODEL = "smollm2-135m"
CASES = [
    (subjects.hidden("m", "gpu-1"), "tide.v1.hidden.m.gpu-1", Address("hidden", "m", node="gpu-1")),
    (
        subjects.report("m", "a", "controller"),
        "tide.v1.report.m.a.controller",
        Address("report", "m", node="a", role="controller"),
    ),
    (
        subjects.draft_claim("m", 42),
        "tide.v1.draft.m.00000042.claim",
        Address("draft_claim", "m", version=42),
    ),
    (
        subjects.draft_part("m", 42, 0),
        "tide.v1.draft.m.00000042.00000",
        Address("draft_part", "m", version=42, part=0),
    ),
    (
        subjects.draft_manifest("m", 99_999_999),
        "tide.v1.draft.m.99999999.manifest",
        Address("draft_manifest", "m", version=99_999_999),
    ),
    (
        subjects.target_rows("m", "lm_head", 512),
        "tide.v1.target.m.lm_head.00000512",
        Address("target", "m", tensor="lm_head", first_row=512),
    ),
    (
        subjects.control_server("m", "A_1"),
        "tide.v1.control.m.server.A_1",
        Address("control_server", "m", node="A_1"),
    ),
    (
        subjects.control_trainer("m", "t"),
        "tide.v1.control.m.trainer.t",
        Address("control_trainer", "m", node="t"),
    ),
    (subjects.journal("m"), "tide.v1.journal.m", Address("journal", "m")),
    (
        subjects.operator_request("m", "ab" * 16),
        f"tide.v1.operator.m.{'ab' * 16}",
        Address("operator", "m", request="ab" * 16),
    ),
    (subjects.forget("m", "ab" * 16), f"tide.v1.forget.m.{'ab' * 16}", Address("forget", "m", request="ab" * 16)),
    (
        subjects.forgotten("m", "ab" * 16, "t1"),
        f"tide.v1.forget.m.{'ab' * 16}.t1",
        Address("forgotten", "m", request="ab" * 16, node="t1"),
    ),
]


@pytest.mark.parametrize(("built", "expected", "address"), CASES)
def test_building_and_parsing_are_inverse(built: str, expected: str, address: Address) -> None:
    assert built == expected
    assert parse(built) == address


def test_every_channel_is_covered() -> None:
    assert [address.channel for _, _, address in CASES] == list(CHANNELS)


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "tide.v1.hidden.m",
        "tide.v1.hidden.m.a.b",
        "tide.v1.hidden.M.a",
        "tide.v1.hidden.m.a ",
        "tide.v1.hidden.m.a\n",
        "tide.v1.hidden.m.*",
        "tide.v2.hidden.m.a",
        "tide.v1.report.m.a.broker",
        "tide.v1.draft.m.42.claim",
        "tide.v1.draft.m.000000042.claim",
        "tide.v1.draft.m.00000000.claim",
        "tide.v1.draft.m.00000042.1",
        "tide.v1.draft.m.\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661.claim",
        "tide.v1.control.m.controller.a",
        "tide.v1.target.m.fc.00000000",
        "xtide.v1.journal.m",
    ],
)
def test_other_subjects_are_refused(subject: str) -> None:
    with pytest.raises(WireError, match="is not a subject"):
        parse(subject)


@pytest.mark.parametrize(
    "build",
    [
        lambda: subjects.hidden("m", "host.example"),
        lambda: subjects.hidden("m", ""),
        lambda: subjects.hidden("m", "*"),
        lambda: subjects.hidden("M", "a"),
        lambda: subjects.hidden("m" * 65, "a"),
        lambda: subjects.report("m", "a", "broker"),
        lambda: subjects.draft_claim("m", 0),
        lambda: subjects.draft_claim("m", -1),
        lambda: subjects.draft_claim("m", 10**8),
        lambda: subjects.draft_part("m", 1, -1),
        lambda: subjects.draft_part("m", 1, 10**5),
        lambda: subjects.target_rows("m", "fc", 0),
        lambda: subjects.control_server("m", "a b"),
    ],
)
def test_names_that_cannot_be_part_of_a_subject_are_refused(build: object) -> None:
    with pytest.raises(ValueError, match=r"must|version 0"):
        build()  # type: ignore[operator]


def test_sorting_subjects_sorts_versions() -> None:
    versions = [1, 2, 10, 99, 100, 12_345_678]
    assert sorted(subjects.draft_manifest("m", v) for v in versions[::-1]) == [
        subjects.draft_manifest("m", v) for v in versions
    ]


def matches(pattern: str, subject: str) -> bool:
    """NATS: `*` stands for one token."""
    words, tokens = pattern.split("."), subject.split(".")
    return len(words) == len(tokens) and all(w in ("*", t) for w, t in zip(words, tokens, strict=True))


@pytest.mark.parametrize(
    ("pattern", "channels"),
    [
        (subjects.all_hidden("m"), {"hidden"}),
        (subjects.all_reports("m"), {"report"}),
        (subjects.all_reports("m", "server"), set()),
        (subjects.all_claims("m"), {"draft_claim"}),
        (subjects.all_manifests("m"), {"draft_manifest"}),
        (subjects.all_of_draft("m", 42), {"draft_claim", "draft_part"}),
        (subjects.all_target_rows("m"), {"target"}),
        (subjects.all_target_rows("m", "norm"), set()),
        (subjects.all_control("m"), {"control_server", "control_trainer"}),
    ],
)
def test_filters_match_their_channels_only(pattern: str, channels: set[str]) -> None:
    assert {address.channel for built, _, address in CASES if matches(pattern, built)} == channels


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_record_has_one_subject_and_is_verified_on_it(name: str) -> None:
    record = EXAMPLES[name]
    subject = subject_of(MODEL, record)
    verify(subject, record)
    with pytest.raises(WireError, match="belongs on"):
        verify(subjects.report(MODEL, "somebody", "controller"), record)


def test_a_record_of_another_model_or_node_is_refused() -> None:
    with pytest.raises(ValueError, match="belongs to model"):
        subject_of("other", EXAMPLES["hidden_chunk_bf16"])
    with pytest.raises(WireError, match="belongs to model"):
        verify("tide.v1.hidden.other.gpu-1", EXAMPLES["hidden_chunk_bf16"])
    with pytest.raises(WireError, match=r"belongs on tide\.v1\.hidden"):
        verify(subjects.hidden(MODEL, "gpu-2"), EXAMPLES["hidden_chunk_bf16"])


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_retry_has_the_same_id_and_every_record_another(name: str) -> None:
    record = EXAMPLES[name]
    assert message_id(MODEL, record) == message_id(MODEL, dataclasses.replace(record))
    others = {message_id(MODEL, other) for key, other in EXAMPLES.items() if not key.startswith(name[:12])}
    assert message_id(MODEL, record) not in others
    assert message_id(MODEL, record).isascii()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("hidden_chunk_bf16", {"chunk_index": 2}),
        ("hidden_chunk_bf16", {"request_id": "f" * 32}),
        ("draft_manifest_anchor", {"content_digest": "f" * 64}),
        ("draft_manifest_anchor", {"parts": ()}),
        ("draft_part", {"data": b"other"}),
        ("draft_claim", {"trainer": "trainer-2"}),
        ("node_report", {"sequence": 13}),
        ("node_report", {"at": 1.0}),
        ("trainer_report", {"at": 1.0}),
        ("desired_server", {"generation": 5}),
        ("desired_server", {"fencing_token": 10}),
        ("desired_trainer", {"at": 1.0}),
        ("decision", {"sequence": 32}),
        ("target_rows", {"first_row": 3}),
        ("operator_request", {"request_id": "f" * 32}),
    ],
)
def test_what_is_not_a_retry_has_another_id(name: str, changes: dict[str, object]) -> None:
    """A restarted process counts from 0 again; the broker must not take its reports for retries."""
    record = EXAMPLES[name]
    changed: records.Record = dataclasses.replace(record, **changes)  # type: ignore[arg-type]
    assert message_id(MODEL, record) != message_id(MODEL, changed)


def test_ids_of_two_models_differ() -> None:
    assert message_id("a", EXAMPLES["draft_part"]) != message_id("b", EXAMPLES["draft_part"])


def test_the_request_of_a_chunk_is_told_by_its_message_id() -> None:
    """Without reading the chunk; ids of anything else are no chunk's."""
    chunk = EXAMPLES["hidden_chunk_bf16"]
    assert isinstance(chunk, records.HiddenChunk)
    assert subjects.request_of_chunk(message_id(MODEL, chunk)) == chunk.request_id
    for other in ("", "x", f"tide.v1.hidden.m.n:{chunk.request_id}", message_id(MODEL, EXAMPLES["node_report"])):
        assert subjects.request_of_chunk(other) is None

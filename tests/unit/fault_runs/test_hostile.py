"""Hostile messages are hostile: every reader refuses them, and the examples that they are made from are good."""

import pytest
from fault_runs import hostile

from tests import trainer_samples
from tide_daemon.errors import WireError
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.kinds import KIND_BY_RECORD

MODEL = trainer_samples.SPEC.model
EXAMPLES = hostile.examples(trainer_samples.SPEC, 1.0)


def refuses(subject: str, data: bytes) -> bool:
    try:
        record = envelope.decode(data)
        subjects.verify(subject, record)
    except WireError:
        return True
    return False


def test_there_is_one_valid_example_of_every_kind() -> None:
    """A new kind of message has to be attacked too."""
    assert {type(record) for record in EXAMPLES} == set(KIND_BY_RECORD)
    for record in EXAMPLES:
        assert not refuses(subjects.subject_of(MODEL, record), envelope.encode(record))


@pytest.mark.parametrize("record", EXAMPLES, ids=lambda record: type(record).__name__)
def test_damage_is_refused(record: object) -> None:
    """Flipped bits, cut ends, wrong fields, other versions."""
    messages = [
        *hostile.flipped(record, MODEL, 64),  # type: ignore[arg-type]
        *hostile.cut_short(record, MODEL, 16),  # type: ignore[arg-type]
        *hostile.wrong_fields(record, MODEL),  # type: ignore[arg-type]
        hostile.of_version(record, MODEL, 2),  # type: ignore[arg-type]
    ]
    assert len(messages) > 60
    assert [subject for subject, data in messages if not refuses(subject, data)] == []


def test_sizes_and_bombs_are_refused() -> None:
    """Claimed sizes, and small frames that unpack to a lot."""
    messages = [*hostile.oversized(EXAMPLES, MODEL), *hostile.bombs(EXAMPLES, MODEL, 64 << 20)]
    assert max(len(data) for _, data in messages) < 64 * 1024
    assert all(refuses(subject, data) for subject, data in messages)

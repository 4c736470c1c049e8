"""The last gate of a server node: what is kept back, what is withheld, and the audit line of what left."""

import dataclasses

from structlog.testing import capture_logs

from tests.trainer_samples import PROMPT, RESPONSE, chunks, request_id
from tide_daemon.roles.leaving import Leaving, audit_id
from tide_daemon.wire.records import FIRST_CHOICE


def test_one_audit_line_a_request_without_its_id_or_text() -> None:
    """Rows, bytes, chunks and workload; the id is hashed; a request that never ends is told of at the end."""
    leaving = Leaving()
    with capture_logs() as logs:
        for chunk in chunks(1):
            assert leaving.prepare(chunk) is chunk
            leaving.left(chunk, 1000)
        first, _ = chunks(2)
        leaving.left(first, 700)
        leaving.end()
    lines = [entry for entry in logs if entry["event"] == "samples_left_node"]
    assert [(line["request"], line["rows"], line["bytes"], line["chunks"], line["ended"]) for line in lines] == [
        (audit_id(request_id(1)), PROMPT + RESPONSE, 2000, 2, True),
        (audit_id(request_id(2)), (PROMPT + RESPONSE) // 2, 700, 1, False),
    ]
    assert all(line["workload"] == "code" for line in lines)
    assert request_id(1) not in str(logs)
    assert leaving.num_requests == 2


def test_excluded_workloads_and_forgotten_requests_stay() -> None:
    """Whatever the engine gave."""
    leaving = Leaving(excluded=("medical",))
    first, second = chunks(1)
    assert leaving.prepare(dataclasses.replace(first, workload="medical")) is None
    assert leaving.prepare(first) is first
    leaving.left(first, 10)
    leaving.forgotten.add(first.request_id)
    assert leaving.prepare(second) is None
    assert leaving.num_kept == 2


def test_withheld_across_chunks() -> None:
    """The first token of the second chunk is told by the first chunk's last row."""
    leaving = Leaving(token_ids=False)
    first, second = (leaving.prepare(chunk) for chunk in chunks(1))
    assert first is not None and second is not None
    assert first.withheld and second.withheld
    assert (second.token_ids == FIRST_CHOICE).all()


def test_what_is_open_is_bounded(monkeypatch) -> None:
    """Beyond the bound the oldest is told of as not ended."""
    from tide_daemon.roles import leaving as module

    monkeypatch.setattr(module, "_MAX_OPEN", 2)
    leaving = Leaving()
    for number in range(4):
        leaving.left(next(chunks(number)), 1)
    assert leaving.num_requests == 2

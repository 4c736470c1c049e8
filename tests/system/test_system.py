"""The real system: official clients, and kill -9 of each process in turn while requests run.

Recovery limits are generous for two shared cores; on idle ones everything but a new SGLang takes seconds.
"""

import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import openai
import pytest
from demo_run.stack import MODEL

from tests.schema_check import assert_valid
from tests.system.system import System
from tide_daemon.wire import subjects
from tide_daemon.wire.records import Decision, DesiredServer, DraftManifest, NodeReport

pytestmark = [pytest.mark.sglang, pytest.mark.timeout(900)]

ROLE_BACK_S = 90.0
"""A role that was killed and started again is ready: imports, connection, a new lease."""
BROKER_BACK_S = 60.0
ENGINE_BACK_S = 300.0
"""A new SGLang serves and runs the draft that is desired."""
COUNTING = "Count from one to ten."


class Traffic(threading.Thread):
    """One short request after another; `failed` holds what went wrong."""

    def __init__(self, system: System) -> None:
        super().__init__(daemon=True)
        self.num_answered = 0
        self.failed: list[str] = []
        self._system = system
        self._ends = threading.Event()

    def run(self) -> None:
        for number in itertools.count():
            if self._ends.is_set():
                return
            try:
                self._system.complete(f"{COUNTING} ({number})", num_tokens=6)
                self.num_answered += 1
            except OSError as error:
                self.failed.append(str(error))
                time.sleep(0.5)

    def end(self) -> None:
        self._ends.set()
        self.join(130)


@contextmanager
def traffic(system: System) -> Iterator[Traffic]:
    """Requests during the block, and at least three after whatever happened in it."""
    running = Traffic(system)
    running.start()
    try:
        system.until("requests are answered", lambda: running.num_answered > 0, 60)
        yield running
        answered = running.num_answered
        system.until("requests go on", lambda: running.num_answered >= answered + 3, 60)
    finally:
        running.end()


def newest_report(system: System) -> NodeReport:
    record = assert_valid(system.messages(subjects.report(MODEL, "demo-server", "server"))[-1][1])
    assert isinstance(record, NodeReport)
    return record


def desired(system: System) -> DesiredServer:
    record = assert_valid(system.messages(subjects.control_server(MODEL, "demo-server"))[-1][1])
    assert isinstance(record, DesiredServer)
    return record


def test_a_server_serves_before_there_is_a_broker(system: System) -> None:
    """The first answer came while nobody listened at bus.url."""
    assert system.first_answer


def test_the_official_client_works_while_capture_goes_on(system: System) -> None:
    """Chat completions, streaming and not, greedy and sampled; rows reach the trainer, but not opted-out ones."""
    client = openai.OpenAI(base_url=f"{system.openai_url}/v1", api_key="none", timeout=120)
    before = system.role("trainer")["num_requests"]
    (model,) = client.models.list().data
    messages = [{"role": "user", "content": COUNTING}]
    extra = {"custom_params": {"tide_workload": "counting"}}
    whole = client.chat.completions.create(
        model=model.id, messages=messages, max_tokens=16, temperature=0, extra_body=extra
    )
    text, usage = whole.choices[0].message.content, whole.usage
    assert text and usage is not None and 0 < usage.completion_tokens <= 16
    pieces, streamed = [], None
    for piece in client.chat.completions.create(
        model=model.id,
        messages=messages,
        max_tokens=16,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=extra,
    ):
        pieces += [choice.delta.content or "" for choice in piece.choices]
        streamed = piece.usage or streamed
    assert "".join(pieces) and len(pieces) > 2
    assert streamed is not None and streamed.prompt_tokens == usage.prompt_tokens
    sampled = client.chat.completions.create(
        model=model.id, messages=messages, max_tokens=8, temperature=1.0, extra_body=extra
    )
    assert sampled.choices[0].finish_reason in ("stop", "length")
    system.until("the trainer has the requests", lambda: system.role("trainer")["num_requests"] >= before + 3, 60)
    opted_out = system.role("server")["requests_opted_out"]
    client.chat.completions.create(
        model=model.id, messages=messages, max_tokens=8, extra_body={"custom_params": {"tide": "off"}}
    )
    system.until("the request is left out", lambda: system.role("server")["requests_opted_out"] == opted_out + 1, 30)
    assert system.role("server")["rows_dropped"] == 0


def test_the_trainer_gets_the_frozen_rows_over_the_bus(system: System) -> None:
    """It has no file of the target; the server node put embedding, norm and head on the bus."""
    folder = system.folder / "trainer" / "trainer" / "target"
    system.until("the rows are there", (folder / "digest.json").exists, 120)
    assert not [problem for problem in system.role("trainer")["problems"] if "frozen tensors" in problem]


def test_the_trainer_is_killed(system: System) -> None:
    """No request notices; the next trainer has every sample that was acknowledged, and takes new ones."""
    with traffic(system) as requests:
        system.until("samples arrive", lambda: system.role("trainer")["num_requests"] > 0, 60)
        before = system.role("trainer")["num_requests"]
        system.kill_role("trainer")
        system.start_role("trainer")
        system.until("the trainer is ready", lambda: system.is_ready("trainer"), ROLE_BACK_S)
        system.until("new samples arrive", lambda: system.role("trainer")["num_requests"] > before, ROLE_BACK_S)
    assert not requests.failed
    assert system.role("server")["num_swaps"] == 1


def test_the_controller_is_killed(system: System) -> None:
    """No request notices; its successor has a higher token, knows the serving draft and applies nothing twice."""
    before, wanted = newest_report(system), desired(system)
    with traffic(system) as requests:
        system.kill_role("controller")
        system.start_role("controller")
        system.until("it leads", lambda: bool(system.role("controller")["leading"]), ROLE_BACK_S)
        assert system.role("controller")["fencing_token"] > wanted.fencing_token
        system.until("it sees the node", lambda: system.role("controller")["num_nodes"] == 1, ROLE_BACK_S)
    assert not requests.failed
    assert system.role("controller")["serving_version"] == 1
    after, still = newest_report(system), desired(system)
    assert (after.running_version, after.running_digest) == (before.running_version, before.running_digest)
    assert after.num_swaps == before.num_swaps == 1 and still.draft_version == 1
    assert still.generation >= wanted.generation


def test_the_broker_is_killed(system: System) -> None:
    """No request notices, with the broker gone for seconds; chunks and reports flow again once it is back."""
    before = newest_report(system)
    with traffic(system) as requests:
        system.nats.kill()
        system.until("the loss shows", lambda: not system.status("server")["bus"]["connected"], BROKER_BACK_S)
        answered = requests.num_answered
        system.until("requests go on without it", lambda: requests.num_answered >= answered + 2, 60)
        stored = system.role("trainer")["num_requests"]
        system.nats.start()
        system.until("every role is back", lambda: all(map(system.is_ready, ("server", "trainer"))), BROKER_BACK_S)
        system.until("samples arrive", lambda: system.role("trainer")["num_requests"] > stored, BROKER_BACK_S)
        system.until("somebody leads", lambda: bool(system.role("controller")["leading"]), BROKER_BACK_S)
    assert not requests.failed
    after = newest_report(system)
    assert after.sequence > before.sequence and after.num_swaps == 1 and after.engine_starts == 1


def test_the_server_daemon_is_killed(system: System) -> None:
    """SGLang serves on without it and is adopted: same process, same draft, no second swap; rows flow again."""
    pid, wanted = system.engine_pid(), desired(system)
    with traffic(system) as requests:
        system.kill_role("server")
        answered = requests.num_answered
        system.until("requests go on without it", lambda: requests.num_answered >= answered + 2, 60)
        system.start_role("server")
        system.until("it is ready", lambda: system.is_ready("server"), ROLE_BACK_S)
        system.until(
            "desired state is in force",
            lambda: system.role("server")["applied_generation"] >= wanted.generation,
            ROLE_BACK_S,
        )
        stored = system.role("trainer")["num_requests"]
        system.until("samples arrive", lambda: system.role("trainer")["num_requests"] > stored, ROLE_BACK_S)
    assert not requests.failed
    shown = system.role("server")
    assert system.engine_pid() == pid
    assert (shown["draft_version"], shown["num_swaps"]) == (1, 1)


def test_sglang_is_killed(system: System) -> None:
    """It is started again and gets the desired draft, once; the daemons live on."""
    pid = system.engine_pid()
    fencing_token = system.role("controller")["fencing_token"]
    with traffic(system) as requests:
        os.kill(pid, signal.SIGKILL)
        system.until("the loss shows", lambda: system.role("server")["engine"] != "ready", 60)
        system.until("SGLang serves again", lambda: system.role("server")["engine"] == "ready", ENGINE_BACK_S)
        system.until("the draft is back", lambda: system.role("server")["draft_version"] == 1, 60)
    assert requests.failed, "requests in flight end with an error, later ones are answered"
    shown = system.role("server")
    assert system.engine_pid() != pid
    assert shown["num_swaps"] == 1 and shown["last_error"] == ""
    assert system.role("controller")["fencing_token"] == fencing_token
    stored = system.role("trainer")["num_requests"]
    with traffic(system):
        system.until("samples arrive", lambda: system.role("trainer")["num_requests"] > stored, 60)


def test_nothing_was_decided_twice(system: System) -> None:
    """Over all that happened: one version, judged once, decisions once and in order; every message fits its schema."""
    journal = [assert_valid(data) for _, data in system.messages(subjects.journal(MODEL))]
    decisions = [record for record in journal if isinstance(record, Decision)]
    assert len(decisions) == len(journal) > 0
    places = [(decision.fencing_token, decision.sequence) for decision in decisions]
    assert places == sorted(set(places))
    instructions = [item for decision in decisions for item in decision.instructions]
    assert all(item["reason"] for item in instructions)
    assert [item["verdict"] for item in instructions if item["instruction"] == "judged"] == ["promote"]
    generations = [item["generation"] for item in instructions if item["instruction"] == "set_server"]
    assert generations == sorted(set(generations)), "no generation stands for two states"
    drafts = [assert_valid(data) for _, data in system.messages(subjects.all_manifests(MODEL))]
    assert [draft.version for draft in drafts if isinstance(draft, DraftManifest)] == [1]
    for _, data in system.messages(subjects.all_control(MODEL), subjects.all_reports(MODEL)):
        assert_valid(data)

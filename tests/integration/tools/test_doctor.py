"""doctor on a node that is well, then with one thing wrong at a time; the broker is a real one."""

import asyncio
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests import trainer_samples
from tests.nats_fixture import NatsServer
from tests.unit.trainer.test_publish import SCORES, make_round
from tide_daemon import cli
from tide_daemon.bus.memory import MemoryBroker, MemoryBus
from tide_daemon.bus.topology import TopologyLimits, build_topology
from tide_daemon.config import load
from tide_daemon.engine.sglang.hook_check import missing
from tide_daemon.exit_codes import ExitCode
from tide_daemon.roles.controller_journal import read_record
from tide_daemon.roles.draft_fetch import DraftFetcher
from tide_daemon.roles.draft_publish import Publisher
from tide_daemon.tools.checks import broker, machine
from tide_daemon.tools.checks.finding import Finding
from tide_daemon.tools.checks.model import check_model
from tide_daemon.tools.doctor import examine
from tide_daemon.wire import subjects
from tide_daemon.wire.records import NO_DRAFT

Output = pytest.CaptureFixture[str]


class Node:
    """A server node's settings, with one changed for each look."""

    def __init__(self, url: str, folder: Path, capsys: Output) -> None:
        self._settings: dict[str, object] = {
            "bus.url": url,
            "node.state_dir": folder / "state",
            "status.port": 0,
            "server.mode": "modelled",
            "trainer.store_max_bytes": 16 << 20,
            "server.model_path": trainer_samples.write_target(folder / "target"),
            "trainer.target_path": folder / "target",
            "draft.vocab_size": 96,
        }
        (folder / "target" / "tokenizer.json").write_text("{}")
        self._capsys = capsys

    def look(self, role: str = "server", **changes: object) -> tuple[int, dict[str, tuple[str, str, str]]]:
        """(exit code, check -> (state, found, advice))."""
        settings = self._settings | {key.replace("__", "."): value for key, value in changes.items()}
        assignments = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        self._capsys.readouterr()
        code = cli.main(["doctor", "--role", role, "--quick", "--json", *assignments])
        found = json.loads(self._capsys.readouterr().out)
        return code, {entry["check"]: (entry["state"], entry["found"], entry["advice"]) for entry in found}


@pytest.fixture
def node(nats_server: NatsServer, tmp_path: Path, capsys: Output) -> Node:
    assert cli.main(["admin", "init", "--url", nats_server.url]) == ExitCode.OK
    return Node(nats_server.url, tmp_path, capsys)


def test_a_node_that_is_well(node: Node) -> None:
    """Nothing failed, and every side was looked at."""
    code, found = node.look("server,trainer")
    assert code == ExitCode.OK, found
    assert {"python", "package torch", "disk", "shared memory", "node.state_dir", "open files"} <= found.keys()
    assert {"target", "layer ids", "vocabulary", "broker", "streams", "max_payload", "clock"} <= found.keys()
    assert found["clock"][0] == "ok" and "round trip" in found["clock"][1]
    assert found["streams"] == ("ok", "all there", "")


def test_ports_and_shared_memory(node: Node) -> None:
    """A port that is taken, and a ring that does not fit."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, found = node.look(status__port=taken.getsockname()[1], capture__ring_bytes=1 << 36)
    assert code == ExitCode.FAILED
    assert found["status.port"][0] == "failed" and "already in use" in found["status.port"][1]
    assert found["shared memory"][0] == "failed" and "capture.ring_bytes" in found["shared memory"][2]


def test_a_key_that_everybody_may_read(node: Node, tmp_path: Path) -> None:
    """And a state directory that others may look into."""
    key, state = tmp_path / "x.nk", tmp_path / "open"
    key.write_text("SU")
    key.chmod(0o644)
    state.mkdir(mode=0o755)
    code, found = node.look(bus__nkey_file=key, node__state_dir=state)
    assert code == ExitCode.FAILED and found["bus.nkey_file"][2] == f"chmod o= {key}"
    assert found["node.state_dir"] == ("warning", f"others may look into {state}", f"chmod 700 {state}")


def test_layers_and_vocabulary(node: Node, tmp_path: Path) -> None:
    """Out of the target's range, and a path without a target."""
    code, found = node.look(draft__aux_layer_ids="1,2,99", draft__vocab_size=1_000_000)
    assert code == ExitCode.FAILED
    assert found["layer ids"][0] == "failed" and "at most" in found["layer ids"][2]
    assert found["vocabulary"][0] == "failed" and "set draft.vocab_size to" in found["vocabulary"][2]
    code, found = node.look("trainer", trainer__target_path=tmp_path)
    assert code == ExitCode.FAILED and found["target"][0] == "failed"


def test_arguments_that_drafts_cannot_have(node: Node) -> None:
    """Said before SGLang is started with them."""
    _, found = node.look(server__mode="launch", server__arguments="--tp 2")
    assert found["arguments"][0] == "ok"
    for words in ("--nnodes=2", "--dtype half"):
        code, found = node.look(server__mode="launch", server__arguments=words)
        assert code == ExitCode.FAILED and found["arguments"][0] == "failed"


def test_a_broker_that_is_not_set_up(
    make_nats_server: Callable[..., NatsServer], tmp_path: Path, capsys: Output
) -> None:
    """Missing streams: a warning where the daemon may make them, a failure where not; small messages fail."""
    server = make_nats_server(max_payload=32 * 1024)
    node = Node(server.url, tmp_path, capsys)
    _, found = node.look()
    assert found["streams"][0] == "warning" and "TIDE_HIDDEN is missing" in found["streams"][1]
    assert found["max_payload"][0] == "failed" and "max_payload to 1MB" in found["max_payload"][2]
    code, found = node.look(bus__manage_streams="false")
    assert code == ExitCode.FAILED and found["streams"][2] == "tide-daemon admin init"
    server.stop()
    code, found = node.look(bus__connect_timeout_s=0.5)
    assert code == ExitCode.FAILED and found["broker"][0] == "failed" and "bus.url" in found["broker"][2]


def test_a_clock_that_is_off(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds: a warning; an hour: a failure."""
    real = time.time
    for skew_s, state in ((10.0, "warning"), (3600.0, "failed")):
        monkeypatch.setattr(broker.time, "time", lambda skew_s=skew_s: real() + skew_s)
        _, found = node.look("controller")
        assert found["clock"][0] == state and "NTP" in found["clock"][2]


def test_a_disk_that_is_small(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less room than the limits allow to be used."""
    usage = machine.shutil.disk_usage("/")
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _path: usage._replace(free=300 << 20))
    code, found = node.look("trainer", trainer__store_max_bytes=1 << 40)
    assert code == ExitCode.OK and found["disk"][0] == "warning" and "trainer.store_max_bytes" in found["disk"][2]


def test_words_for_people(node: Node, tmp_path: Path, capsys: Output) -> None:
    """Text has a line for each check and what to change under it."""
    words = ["--set", "bus.url=nats://127.0.0.1:9", "--set", "bus.connect_timeout_s=0.5"]
    words += ["--set", f"node.state_dir={tmp_path / 'state'}"]
    assert cli.main(["doctor", "--role", "controller", "--set", "trainer.nice=1", *words]) == ExitCode.FAILED
    text = capsys.readouterr().out
    assert "WARN  configuration" in text and "FAIL  broker" in text and "-> check bus.url" in text
    assert text.splitlines()[-1].endswith("checks: 1 failed, 1 warnings")


@pytest.mark.slow
def test_the_installed_sglang_has_every_hook(tmp_path: Path) -> None:
    """Its functions are looked up in a process of its own; nothing is started."""
    pytest.importorskip("sglang", reason="SGLang is not installed")
    words = ["bus.url=nats://127.0.0.1:1", f"node.state_dir={tmp_path}", "server.device=cpu"]
    words.append(f"server.model_path={trainer_samples.write_target(tmp_path / 'target')}")
    (tmp_path / "target" / "tokenizer.json").write_text("{}")
    found = {
        entry.check: entry for entry in check_model(load(("server",), None, {}, words).config, ("server",), quick=False)
    }
    assert found["hooks"].state == "ok", found["hooks"]


def test_a_missing_hook_is_named() -> None:
    """A function that is not there, in a module that is, and in one that is not."""
    names = ["json.dumps", "json.JSONDecoder.decode", "json.JSONDecoder.gone", "json.gone", "gone.at.all"]
    assert missing(names) == names[2:]


def test_examine_runs_in_a_loop(tmp_path: Path) -> None:
    """With a private broker nothing is asked of one."""
    words = [f"node.state_dir={tmp_path}", "server.mode=modelled", "status.port=0"]
    config = load(("server", "trainer", "controller"), None, {}, words).config
    found = asyncio.run(examine(config, ("server", "trainer", "controller"), quick=True))
    assert [entry.state for entry in found if entry.check == "broker"] == ["skipped"]


async def test_drafts_on_this_disk(tmp_path: Path) -> None:
    """A sound one says how many tokens it maps; one of other layers fails; a damaged one is told to be deleted."""
    bus = MemoryBus(MemoryBroker(build_topology(TopologyLimits())))
    await Publisher(bus, trainer_samples.SPEC, "t1", 8).publish(
        make_round(tmp_path / "made", 1), SCORES, 3, None, NO_DRAFT
    )
    manifest = read_record(await bus.last(subjects.draft_manifest(trainer_samples.SPEC.model, 1)))
    path = await DraftFetcher(bus, tmp_path / "drafts").fetch(trainer_samples.SPEC, 1, manifest.content_digest)
    words = [f"node.state_dir={tmp_path}", "bus.url=nats://127.0.0.1:1", "server.mode=modelled"]

    def look(*more: str) -> Finding:
        config = load(("server",), None, {}, [*words, *more]).config
        (found,) = [entry for entry in check_model(config, ("server",), quick=False) if entry.check == "drafts"]
        return found

    target = trainer_samples.write_target(tmp_path / "target")
    (target / "tokenizer.json").write_text("{}")
    layers = ",".join(map(str, trainer_samples.SPEC.aux_layer_ids))
    named = (f"server.model_path={target}", "draft.vocab_size=96")
    assert look(*named, f"draft.aux_layer_ids={layers}").state == "ok"
    assert "tokens mapped" in look().found
    assert look(*named, "draft.aux_layer_ids=0,1,3").state == "failed"
    weights = next(path.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    assert look().state == "warning" and "delete it" in look().advice


def test_where_a_trainer_would_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device and its numbers; what to do where a GPU is asked for and none is found."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = [f"node.state_dir={tmp_path}", "bus.url=nats://127.0.0.1:1"]

    def look(*more: str) -> Finding:
        config = load(("trainer",), None, {}, [*words, *more]).config
        found = check_model(config, ("trainer",), quick=False)
        return next(entry for entry in found if entry.check == "training device")

    assert look().state == "ok" and look().found.startswith("cpu, ")
    asked = look("trainer.device=cuda")
    assert asked.state == "failed" and "finds no GPU" in asked.found and "trainer.device = 'cpu'" in asked.advice

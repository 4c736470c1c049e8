"""Steps table, step times, top log-probabilities, merging, rank commands, settings, target, start arguments."""

import json
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given, settings
from hypothesis import strategies as st

from tide_daemon.api_keys import without_keys
from tide_daemon.engine.sglang import ranks
from tide_daemon.engine.sglang.commands import Commands
from tide_daemon.engine.sglang.merge import merge_steps, parse_steps
from tide_daemon.engine.sglang.settings import PluginSettings, read_settings, write_settings
from tide_daemon.engine.sglang.start import (
    SglangSettings,
    admin_key,
    check_arguments,
    check_dtype,
    check_port,
    command,
    prepare,
)
from tide_daemon.engine.sglang.steps import Steps
from tide_daemon.engine.sglang.target import default_aux_layers, target_spec
from tide_daemon.engine.sglang.timing import Step, StepRecorder, StepTimes
from tide_daemon.engine.sglang.topk import TopLogprobs
from tide_daemon.errors import ConfigError, EngineError


def test_steps_by_batch_size() -> None:
    steps = Steps([0, 1, 2, 3])
    steps.set_table([(1, 3), (4, 1)])
    assert [steps.for_batch(n) for n in (1, 2, 4, 5)] == [0, 0, 0, 0], "no draft loaded"
    steps.allowed = True
    assert [steps.for_batch(n) for n in (1, 2, 4, 5)] == [3, 1, 1, 0]
    steps.cold_majority = True
    assert steps.for_batch(1) == 0


def test_plain_steps_in_between() -> None:
    """Only steps that drafted are counted, however often the engine asks; of two plain ones the second tells."""
    steps = Steps([0, 1, 2, 3], plain_every=4)
    steps.allowed = True

    def take(*sizes: int) -> list[int]:
        taken = []
        for size in sizes:
            assert steps.for_batch(size) == steps.for_batch(size)
            taken.append(steps.for_batch(size))
            tells.append(steps.took(taken[-1]))
        return taken

    tells: list[bool] = []

    assert take(*[1] * 8) == [0] * 8
    steps.set_table([(4, 2)])
    assert all(tells)
    tells.clear()
    assert take(*[1] * 12) == [2, 2, 2, 2, 0, 0, 2, 2, 2, 2, 0, 0]
    assert tells == [True] * 4 + [False, True] + [True] * 4 + [False, True]
    assert take(1, 9, 9, 1, 1, 1, 1, 1, 1) == [2, 0, 0, 2, 2, 2, 0, 0, 2], "plain by the table is not counted"


def test_a_step_that_does_not_tell_is_counted_and_not_in_the_median() -> None:
    times = StepTimes()
    times.add(8, 0, [0] * 8, 0.11, 0.1, typical=False)
    assert times.snapshot()[0][-1] == 0.11, "all that is known"
    for _ in range(3):
        times.add(8, 0, [0] * 8, 0.5, 0.5, typical=False)
        times.add(8, 0, [0] * 8, 0.1, 0.1)
    (row,) = times.snapshot()
    assert row[2:4] == [7, 56]
    assert row[-1] == pytest.approx(0.1)


@pytest.mark.parametrize("table", [[(4, 1), (2, 1)], [(2, 1), (2, 0)], [(0, 1)], [(1, 4)], [(1, -1)]])
def test_bad_tables_are_refused(table: list[tuple[int, int]]) -> None:
    steps = Steps([0, 1, 2, 3])
    with pytest.raises(EngineError):
        steps.set_table(table)
    assert steps.table == ()


def test_step_times_count_and_take_medians() -> None:
    times = StepTimes()
    for seconds in (0.1, 0.2, 9.0):
        times.add(2, 3, [0, 2], seconds, seconds / 2)
    times.add(1, 0, [0], 0.05, 0.05)
    plain, drafted = parse_steps(times.snapshot())
    assert (plain.batch_size, plain.num_steps, plain.num_tokens, plain.accepted_at) == (1, 0, 1, ())
    assert (drafted.num_verifies, drafted.num_tokens, drafted.accepted_at) == (3, 12, (3, 3, 0))
    assert drafted.step_s == pytest.approx(9.3)
    assert drafted.median_step_s == 0.2


def test_medians_are_of_the_machine_as_it_is() -> None:
    """Plain steps that come every five seconds while drafting are as new as the drafting ones beside them."""
    now = 0.0
    times = StepTimes(lambda: now)
    for seconds in (*[0.08] * 60, 0.065):
        now += 5.0
        times.add(4, 0, [0] * 4, seconds, seconds)
    (plain,) = parse_steps(times.snapshot())
    assert plain.median_step_s == 0.065
    # What was seen last is what is known of a kind that has not run since.
    now += 3600.0
    assert parse_steps(times.snapshot()) == [plain]


def test_step_times_are_bounded() -> None:
    times = StepTimes()
    for batch in range(5000):
        times.add(batch, 0, [0], 0.1, 0.1)
    assert len(times.snapshot()) == 4096


class Clock:
    """Marks are the seconds that the test says; a mark is passed once `passed` is there."""

    def __init__(self) -> None:
        self.now, self.passed = 0.0, 1e9

    def mark(self) -> float:
        return self.now

    def elapsed(self, start: float, stop: float) -> float | None:
        return stop - start if stop <= self.passed else None


def test_a_step_lasts_until_the_next_begins() -> None:
    """What comes after the launch (results, catching up) is part of it; what the engine waits for is not."""
    times, clock = StepTimes(), Clock()
    recorder = StepRecorder(times, clock)
    first, second = Step(2, 0.2, 0.5), Step(2, 1.1, 1.2)
    recorder.launched(first, recorder.begin())
    recorder.processed(first, 1, [1])
    assert times.snapshot() == [], "its end is not known yet"
    clock.now = 1.0
    recorder.launched(second, recorder.begin())
    recorder.processed(second, 1, [2])
    clock.now = 1.5
    recorder.idle()
    clock.now = 100.0
    recorder.idle()
    recorder.begin()
    (row,) = parse_steps(times.snapshot())
    assert (row.num_verifies, row.num_tokens) == (2, 5)
    assert (row.step_s, row.target_s) == (pytest.approx(1.5), pytest.approx(0.4))


def test_results_that_come_one_step_later_belong_to_their_own_step() -> None:
    """With overlap scheduling a step's results come after the next one was launched, and marks are passed later."""
    times, clock = StepTimes(), Clock()
    recorder = StepRecorder(times, clock)
    first, second = Step(1, 0.0, 0.5), Step(3, 1.0, 1.5)
    recorder.launched(first, recorder.begin())
    clock.now, clock.passed = 1.0, 0.9
    recorder.launched(second, recorder.begin())
    recorder.processed(first, 1, [1])
    assert times.snapshot() == [], "the device has not passed its end"
    clock.now = clock.passed = 3.0
    recorder.begin()
    (row,) = parse_steps(times.snapshot())
    assert (row.num_steps, row.step_s) == (1, pytest.approx(1.0))


def test_merge_sums_ranks() -> None:
    times = StepTimes()
    times.add(2, 1, [1, 0], 0.2, 0.1)
    rank = parse_steps(times.snapshot())
    (both,) = merge_steps([rank, rank])
    assert (both.num_verifies, both.num_tokens, both.accepted_at) == (2, 6, (2,))
    assert both.median_step_s == pytest.approx(0.2)


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(st.integers(1, 700), st.sampled_from([128, 384])), st.integers(1, 8), st.integers(1, 20), st.booleans(),
    st.integers(0, 2**31),
)  # fmt: skip
def test_top_logprobs_equal_the_plain_computation(vocab: int, k: int, rows: int, in_order: bool, seed: int) -> None:
    k = min(k, vocab)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocab, generator=generator) * 5
    compute = TopLogprobs(vocab, k)
    before = logits.clone()
    wanted = torch.arange(rows) if in_order else torch.arange(rows).flip(0)
    for _ in range(2):  # the scratch buffer is used again
        ids, logprobs = compute(logits, wanted)
    expected = torch.log_softmax(logits[wanted], -1).topk(k, dim=-1)
    assert torch.equal(ids.long(), expected.indices)
    assert torch.allclose(logprobs.float(), expected.values, atol=2e-2, rtol=1e-3)
    assert torch.equal(logits, before)


def test_top_logprobs_leave_the_logits_alone() -> None:
    logits = torch.randn(3, 300).to(torch.bfloat16)
    before = logits.clone()
    TopLogprobs(300, 4)(logits, torch.tensor([0, 2]))
    assert torch.equal(logits, before)


def test_rank_commands_round_trip() -> None:
    table = [(1, 3), (8, 1)]
    args = ranks.steps_args(table)
    assert ranks.is_ours(args)
    assert ranks.table_of(args) == table
    assert ranks.table_of(ranks.steps_args([])) == []
    assert ranks.table_of(ranks.swap_args(3)) is None
    assert not ranks.is_ours({"pp_max_micro_batch_size": 1})


async def test_ranks_are_told_with_the_key_that_the_engine_asks_for() -> None:
    """As SGLang's srt/utils/auth.py decides for /set_internal_state: the admin's key, else everybody's."""
    seen: list[str | None] = []

    async def obey(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return web.json_response([True, True])

    app = web.Application()
    app.router.add_post("/set_internal_state", obey)
    async with TestServer(app) as server:
        for arguments in ([], ["--api-key", "a"], ["--api-key", "a", "--admin-api-key=b"]):
            await ranks.tell_every_rank(str(server.make_url("")).rstrip("/"), {}, 5.0, admin_key(arguments))
    assert seen == [None, "Bearer a", "Bearer b"]


def test_keys_are_not_shown() -> None:
    words = ["--tp", "2", "--api-key", "a", "--admin-api-key=b", "--api-key"]
    assert without_keys(words) == ["--tp", "2", "--api-key", "***", "--admin-api-key=***", "--api-key"]


def test_one_rank_of_several_does_not_change_its_steps_alone() -> None:
    """The ranks' collectives would no longer match."""
    runtime: Any = SimpleNamespace(enabled=lambda feature: True, num_ranks=2, steps=Steps([0, 1, 2]))
    with pytest.raises(EngineError, match="tensor parallelism"):
        Commands(runtime).set_steps({"table": [[1, 2]]})
    assert runtime.steps.table == ()
    runtime.num_ranks = 1
    Commands(runtime).set_steps({"table": [[1, 2]]})
    assert runtime.steps.table == ((1, 2),)


def test_plugin_settings_round_trip(tmp_path: Path) -> None:
    assert read_settings(tmp_path) == PluginSettings()
    made = PluginSettings(topk=3, sample_rate=0.5, collect=False)
    write_settings(tmp_path, made)
    assert read_settings(tmp_path) == made


@pytest.mark.parametrize("text", ["[]", "{", '{"topk": "3"}', '{"topk": 3.5}', '{"topk": 65}', '{"extra": 1}'])
def test_bad_plugin_settings_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "plugin.json").write_text(text)
    with pytest.raises(ConfigError):
        read_settings(tmp_path)


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    config = {
        "hidden_size": 16,
        "vocab_size": 64,
        "num_hidden_layers": 8,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "intermediate_size": 32,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 128,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_fingerprint_follows_config_and_weights(model_dir: Path) -> None:
    first = target_spec(model_dir, "m", (1, 2, 3))
    assert target_spec(model_dir, "m", (1, 2, 3)) == first
    (model_dir / "model.safetensors").write_bytes(b"x" * 101)
    second = target_spec(model_dir, "m", (1, 2, 3))
    assert second.target_fingerprint != first.target_fingerprint
    assert second.vocab_hash == first.vocab_hash
    (model_dir / "tokenizer.json").write_text("{ }")
    assert target_spec(model_dir, "m", (1, 2, 3)).vocab_hash != first.vocab_hash


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_missing_files_are_named(model_dir: Path, name: str) -> None:
    (model_dir / name).unlink()
    with pytest.raises(ConfigError, match=r"config\.json|weight files|tokenizer"):
        target_spec(model_dir, "m", (1, 2, 3))


@pytest.mark.parametrize(("layers", "expected"), [(30, (0, 15, 28)), (6, (0, 3, 4)), (4, (0, 1, 2))])
def test_default_layers(layers: int, expected: tuple[int, ...]) -> None:
    """Three distinct layers, none of them the last: SGLang cannot capture that one's output."""
    assert default_aux_layers(layers) == expected


def test_a_target_of_three_layers_has_no_default() -> None:
    with pytest.raises(ConfigError, match="three"):
        default_aux_layers(3)


def test_command_holds_ours_and_theirs(model_dir: Path, tmp_path: Path) -> None:
    made = SglangSettings(
        "m", "n", tmp_path / "run", model_dir, ("--dtype", "float32"), device="cpu", draft_vocab_size=32, max_steps=3
    )
    made.environment["SGLANG_PLUGINS"] = "other"
    prepare(made, (1, 3, 5))
    arguments, environment = command(made)
    assert environment["TIDE_ENGINE_DIR"] == str(tmp_path / "run")
    assert environment["SGLANG_PLUGINS"] == "other,tide"
    assert arguments[arguments.index("--dtype") : arguments.index("--dtype") + 2] == ("--dtype", "float32")
    assert json.loads((tmp_path / "run/steps.json").read_text()) == {"1": {"candidate_steps": [0, 1, 2, 3]}}
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
    placeholder = json.loads((tmp_path / "run/placeholder/config.json").read_text())
    assert placeholder["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [1, 3, 5]


def started_with(tmp_path: Path, model_dir: Path, *arguments: str, device: str = "gpu") -> tuple[str, ...]:
    return command(SglangSettings("m", "n", tmp_path / "run", model_dir, arguments, device=device))[0]


@pytest.mark.parametrize(
    ("arguments", "device", "given"),
    [
        ((), "gpu", ["2048"]),
        (("--max-running-requests", "7"), "gpu", ["7"]),
        (("--max-running-requests=7",), "gpu", []),
        (("--disable-radix-cache",), "gpu", []),
        ((), "cpu", []),
    ],
)
def test_a_gpu_runs_as_many_requests_as_without_a_draft(
    tmp_path: Path, model_dir: Path, arguments: tuple[str, ...], device: str, given: list[str]
) -> None:
    """Not SGLang's 48; the operator's own number wins."""
    started = started_with(tmp_path, model_dir, *arguments, device=device)
    values = [started[at + 1] for at, word in enumerate(started) if word == "--max-running-requests"]
    assert values == given


def test_the_draft_is_not_quantised_with_the_target(tmp_path: Path, model_dir: Path) -> None:
    started = started_with(tmp_path, model_dir, "--quantization", "fp8")
    assert started[started.index("--speculative-draft-model-quantization") + 1] == "unquant"


@pytest.mark.parametrize(
    "arguments",
    [
        "--port 1",
        "--speculative-num-steps=3",
        "--model-path x",
        "--enable-dp-attention",
        "--tp 4 --attn-dp-size 4",
        "--attention-data-parallel-size=4",
        "--enable-lora",
        "--lora-paths a=b",
        "--enable-hisparse",
        "--pp-size=2",
        "--nnodes 2 --node-rank 0",
        "--nnodes=2",
    ],
)
def test_arguments_that_are_ours_or_cannot_work(arguments: str) -> None:
    with pytest.raises(ConfigError):
        check_arguments(arguments.split())


def test_arguments_that_work() -> None:
    check_arguments(["--tp", "4", "--dp-size", "2", "--attn-dp-size", "1", "--nnodes=1", "--pp-size", "1"])


@pytest.mark.parametrize(
    ("config", "arguments", "refused"),
    [
        ({"torch_dtype": "bfloat16"}, "", False),
        ({"torch_dtype": "bfloat16"}, "--dtype half", True),
        ({"torch_dtype": "bfloat16"}, "--dtype=float16", True),
        ({"dtype": "float16"}, "--dtype auto", True),
        ({"dtype": "float16"}, "--dtype bfloat16", False),
        ({"dtype": "float32"}, "", True),
        ({"dtype": "float32", "model_type": "gemma3_text"}, "", False),
        ({"dtype": "float32"}, "--dtype float32", False),
        ({"dtype": "float16", "text_config": {"hidden_size": 8}}, "", True),
        ({}, "", False),
    ],
)
def test_a_target_in_float16_is_refused(tmp_path: Path, config: dict[str, Any], arguments: str, refused: bool) -> None:
    """By --dtype, and by what SGLang makes of the type that config.json names."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    if refused:
        with pytest.raises(ConfigError, match="--dtype bfloat16"):
            check_dtype(tmp_path, arguments.split(), "gpu")
    else:
        check_dtype(tmp_path, arguments.split(), "gpu")


def test_a_taken_port_is_told_and_a_closing_connection_is_no_obstacle() -> None:
    """Before the model is loaded for nothing; the connections of a server that has just ended do not count."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EngineError, match=f"127.0.0.1:{port}: .*in use"):
            check_port("127.0.0.1", port)
        with socket.create_connection(("127.0.0.1", port)) as client:
            taken.accept()[0].close()  # the side that closes first keeps the port for a minute
            assert client.recv(1) == b""
    with pytest.raises(OSError, match="in use"), socket.socket() as plain:
        plain.bind(("127.0.0.1", port))
    check_port("127.0.0.1", port)
    with pytest.raises(EngineError, match=r"cannot listen at 192\.0\.2\.1"):
        check_port("192.0.2.1", port)

import argparse
import dataclasses
import io
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from schemas.examples import EXAMPLES
from tide_daemon.bus.memory import MemoryBroker, MemoryBus
from tide_daemon.bus.topology import TopologyLimits, build_topology
from tide_daemon.errors import ConfigError, WireError
from tide_daemon.tools import peek
from tide_daemon.tools.configured_bus import OpenedBus
from tide_daemon.tools.message_view import describe, describe_json, summarise
from tide_daemon.wire.envelope import encode
from tide_daemon.wire.records import DraftPart, HiddenChunk
from tide_daemon.wire.subjects import subject_of

MODEL = "smollm2-135m"
CHUNK = EXAMPLES["hidden_chunk_bf16"]
GOLDEN = Path(__file__).parents[3] / "schemas" / "golden"


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_kind_is_described_and_is_valid_json(name: str) -> None:
    data = encode(EXAMPLES[name])
    assert describe(data).startswith(f"kind: {type(EXAMPLES[name]).__name__}\n")
    assert json.loads(describe_json(data)) == summarise(data)


def test_a_chunk_shows_shapes_and_statistics() -> None:
    assert isinstance(CHUNK, HiddenChunk)
    aux = CHUNK.aux.copy()
    aux[:, :4] = 0x3F80  # layer 2: 1.0
    aux[0, 4] = 0x7FC0  # layer 15: one NaN of 12 values
    aux[:, 8:] = 0x7F80  # layer 27: infinity everywhere
    fields = summarise(encode(dataclasses.replace(CHUNK, aux=aux)))["fields"]
    assert fields["tensors"]["aux"] == "uint16 [3, 12]"
    assert fields["response_rows"] == 2
    assert fields["rows_with_topk"] == 2
    statistics = fields["aux_statistics"]
    assert statistics["layer 2"] == {"finite_share": 1.0, "mean": 1.0, "std": 0.0, "absmax": 1.0}
    assert statistics["layer 15"]["finite_share"] == pytest.approx(11 / 12)
    assert statistics["layer 27"] == {"finite_share": 0.0, "mean": None, "std": None, "absmax": None}


def test_token_ids_are_shown_only_when_asked_for() -> None:
    data = encode(CHUNK)
    hidden, shown = summarise(data)["fields"], summarise(data, show_tokens=True)["fields"]
    assert shown["token_ids"] == [5, 17, 99]
    assert shown["next_token_id"] == 42
    assert shown.keys() - hidden.keys() == {"token_ids", "next_token_id", "topk_ids", "topk_logprobs"}
    assert "5, 17, 99" not in describe(data)
    assert "5, 17, 99" in describe(data, show_tokens=True)


def test_a_chunk_without_rows_is_described() -> None:
    assert isinstance(CHUNK, HiddenChunk)
    empty = dataclasses.replace(
        CHUNK,
        token_ids=CHUNK.token_ids[:0],
        loss_mask=CHUNK.loss_mask[:0],
        topk_ids=CHUNK.topk_ids[:0],
        topk_logprobs=CHUNK.topk_logprobs[:0],
        aux=CHUNK.aux[:0],
    )
    assert "uint16 [0, 12]" in describe(encode(empty))


def test_long_lists_and_texts_are_cut_in_text_but_not_in_json() -> None:
    report = dataclasses.replace(EXAMPLES["node_report"], problems=tuple(f"problem {i}" for i in range(50)))
    text = describe(encode(report))
    assert "... 30 more" in text
    assert "problem 49" not in text
    assert "problem 49" in describe_json(encode(report))


def test_control_characters_of_a_peer_do_not_reach_the_terminal() -> None:
    forged = "\x1b[2J\nkind: Forged"
    report = dataclasses.replace(EXAMPLES["node_report"], problems=(forged,))
    refused = dataclasses.replace(EXAMPLES["trainer_report"], refused={forged: 1})
    decision = dataclasses.replace(EXAMPLES["decision"], event={forged: {forged: [{forged: forged}]}})
    for record in (report, refused, decision):
        text = describe(encode(record))
        assert "\x1b" not in text
        assert "\nkind: Forged" not in text


def test_the_compression_ratio_is_of_the_body() -> None:
    zeros = encode(DraftPart(1, 0, bytes(1_000_000)))
    noise = encode(DraftPart(1, 0, np.random.default_rng(0).bytes(1_000_000)))
    assert summarise(zeros)["compression_ratio"] > 1000
    assert summarise(noise)["compression_ratio"] == pytest.approx(1.0, abs=0.01)


def test_what_is_no_message_is_refused() -> None:
    with pytest.raises(WireError):
        describe(b"hello")
    out = io.StringIO()
    assert peek.main_stdin(io.BytesIO(b"hello"), out, as_json=False, show_tokens=False) == 1
    assert out.getvalue() == "not a valid message: 5 bytes are fewer than an envelope's 16\n"


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    peek.add_arguments(parser)
    return parser.parse_args(words)


@pytest.fixture
async def broker() -> MemoryBroker:
    broker = MemoryBroker(build_topology(TopologyLimits()))
    bus = MemoryBus(broker)
    for name in ("draft_part", "draft_manifest_anchor", "desired_server"):
        await bus.publish(subject_of(MODEL, EXAMPLES[name]), encode(EXAMPLES[name]))
    await bus.close()
    return broker


async def peeked(broker: MemoryBroker, *words: str) -> tuple[int, str]:
    @asynccontextmanager
    async def open_bus(_arguments: argparse.Namespace) -> AsyncIterator[OpenedBus]:
        bus = MemoryBus(broker)
        yield OpenedBus(bus, MODEL)
        await bus.close()

    out = io.StringIO()
    code = await peek.run_on_bus(arguments(*words), open_bus, out)
    return code, out.getvalue()


async def test_a_sequence_of_a_stream_is_shown(broker: MemoryBroker) -> None:
    code, text = await peeked(broker, "TIDE_DRAFT", "--seq", "2")
    assert code == 0
    assert text.startswith(f"subject: tide.v1.draft.{MODEL}.00000008.manifest\nsequence: 2\nstored_at: ")
    assert "kind: DraftManifest" in text


async def test_the_newest_of_a_subject_is_shown_as_json(broker: MemoryBroker) -> None:
    code, text = await peeked(broker, "--last", f"tide.v1.control.{MODEL}.server.gpu-1", "--json")
    assert code == 0
    assert json.loads(text)["fields"]["draft_version"] == 8


@pytest.mark.parametrize("words", [("TIDE_DRAFT", "--seq", "99"), ("--last", f"tide.v1.journal.{MODEL}")])
async def test_a_message_that_is_not_there_is_said_so(broker: MemoryBroker, words: tuple[str, ...]) -> None:
    code, text = await peeked(broker, *words)
    assert code == 1
    assert text.startswith("no message: ")


@pytest.mark.parametrize("words", [(), ("TIDE_DRAFT",), ("--seq", "1")])
def test_too_few_arguments_say_what_to_give(words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="say what to show"):
        peek.run(arguments(*words))


def test_the_command_reads_standard_input_as_a_filter_of_the_nats_cli() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tide_daemon", "peek", "-"],
        input=(GOLDEN / "hidden_chunk_bf16_planes.bin").read_bytes(),
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert b"kind: HiddenChunk" in done.stdout
    assert b"codec: bf16-planes" in done.stdout

"""A real SGLang for tests, reached as clients and as the daemon reach it."""

import asyncio
import json
import socket
import time
import urllib.request
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tide_daemon.engine.sglang.launcher import SglangEngine
from tide_daemon.engine.sglang.settings import PluginSettings
from tide_daemon.engine.sglang.start import SglangSettings
from tide_daemon.wire.records import HiddenChunk

from .tiny_target import AUX_LAYERS, DRAFT_VOCAB

START_TIMEOUT_S = 300.0
MAX_BYTES = 1 << 20


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def settings_for(target: Path, run_dir: Path, *arguments: str, plugin: PluginSettings | None = None) -> SglangSettings:
    """Settings for the tiny target in float32."""
    return SglangSettings(
        model="tiny",
        node="node-1",
        run_dir=run_dir,
        model_path=target,
        arguments=("--dtype", "float32", "--max-running-requests", "8", "--max-total-tokens", "16384", *arguments),
        port=free_port(),
        device="cpu",
        aux_layer_ids=AUX_LAYERS,
        draft_vocab_size=DRAFT_VOCAB,
        plugin=plugin or PluginSettings(ring_bytes=32 << 20, topk=4),
        codec="bf16",
        chunk_max_age_s=0.3,
        start_timeout_s=START_TIMEOUT_S,
    )


class Server:
    """An engine and its HTTP endpoint."""

    def __init__(self, engine: SglangEngine, settings: SglangSettings) -> None:
        self.engine = engine
        self.settings = settings

    async def ready(self) -> None:
        """Wait until it serves."""
        until = time.monotonic() + START_TIMEOUT_S
        while (stats := await self.engine.stats()).state != "ready":
            assert time.monotonic() < until, stats.problems
            await asyncio.sleep(0.3)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """POST and decode; blocks."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.settings.port}{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=300) as response:
            return json.loads(response.read())

    async def generate(
        self,
        prompts: Sequence[list[int]],
        num_tokens: int,
        *,
        custom: dict[str, str] | None = None,
        cache_key: str | None = None,
    ) -> list[list[int]]:
        """Greedy ids of each prompt, eight at a time. Requests share cached prefixes under one `cache_key` only."""
        params = {"max_new_tokens": num_tokens, "temperature": 0, "ignore_eos": True, "custom_params": custom}

        def one(ids: list[int]) -> list[int]:
            body = {"input_ids": ids, "sampling_params": params, "extra_key": cache_key}
            return list(self.post("/generate", body)["output_ids"])

        def every() -> list[list[int]]:
            with ThreadPoolExecutor(8) as pool:
                return list(pool.map(one, prompts))

        return await asyncio.to_thread(every)

    async def chunks(self) -> list[HiddenChunk]:
        """Everything captured so far, after the last rows have arrived."""
        found: list[HiddenChunk] = []
        quiet = 0
        while quiet < 5:
            new = self.engine.take_chunks(MAX_BYTES)
            found += new
            quiet = 0 if new else quiet + 1
            await asyncio.sleep(0.2)
        return found


@asynccontextmanager
async def running(settings: SglangSettings) -> AsyncIterator[Server]:
    """Start, wait, hand over, stop."""
    engine = SglangEngine(settings)
    await engine.start()
    try:
        server = Server(engine, settings)
        await server.ready()
        await server.chunks()  # SGLang's own warm-up request
        yield server
    finally:
        await engine.stop(10.0)

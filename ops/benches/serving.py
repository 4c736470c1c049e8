"""SGLang servers for benches: started side by side, all but one paused, loaded over HTTP.

An SGLang without requests still polls, and would take a core from the one that is measured. So servers
that are not being measured are stopped with SIGSTOP: interleaved turns, one server running at a time.
"""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import numpy as np
import torch
from demo_data.model import fetch
from demo_data.packages import cache_dir
from demo_run.ports import free_port

from benches.alternate import Group
from benches.settings import Settings
from tide_daemon.draft.checkpoint import load, save
from tide_daemon.engine.control import ControlClient
from tide_daemon.engine.sglang.launch_env import launch
from tide_daemon.engine.sglang.process import EngineProcess, last_log_lines
from tide_daemon.engine.sglang.settings import PluginSettings, control_socket
from tide_daemon.engine.sglang.start import SglangSettings, command, prepare

START_LIMIT_S = 600.0
COMMAND_TIMEOUT_S = 120.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer: its token ids, and in how many verify steps they came (0 without speculation)."""

    ids: list[int]
    num_verifies: int


class BenchServer:
    """One SGLang."""

    def __init__(
        self, name: str, arguments: Sequence[str], environment: dict[str, str], port: int, folder: Path
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.url = f"http://127.0.0.1:{port}"
        self._folder = folder
        self._process = EngineProcess.spawn(arguments, environment, folder)

    async def ready(self) -> None:
        """Wait until it serves."""
        until = time.monotonic() + START_LIMIT_S
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
            while True:
                try:
                    async with session.get(f"{self.url}/health") as response:
                        if response.status == 200:
                            return
                except (aiohttp.ClientError, TimeoutError):
                    pass
                if not self._process.alive() or time.monotonic() > until:
                    raise RuntimeError(f"{self.name} does not start: {last_log_lines(self._folder, 15)}")
                await asyncio.sleep(0.5)

    def pause(self) -> None:
        """Stop all its processes where they are."""
        Group(self._process.pid).pause()

    def resume(self) -> None:
        """Let them go on."""
        Group(self._process.pid).resume()

    async def stop(self) -> None:
        """End it."""
        self.resume()
        await self._process.end(2.0)

    def cpu_s(self) -> float:
        """Processor seconds of all its processes so far."""
        total = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == self._process.pid:
                total += int(fields[11]) + int(fields[12])
        return total / _TICKS

    async def generate(self, prompts: Sequence[list[int]], num_tokens: int) -> float:
        """Run all prompts at once to `num_tokens` each; wall seconds."""
        started = time.perf_counter()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600)) as session:
            answers = await asyncio.gather(*(self._one(session, ids, num_tokens) for ids in prompts))
        counts = [len(answer.ids) for answer in answers]
        if any(count != num_tokens for count in counts):
            raise RuntimeError(f"{self.name} answered {counts} tokens instead of {num_tokens} each")
        return time.perf_counter() - started

    async def answers(self, prompts: Sequence[list[int]], num_tokens: int, concurrency: int) -> list[Reply]:
        """Greedy answers of `num_tokens` each, in the prompts' order, `concurrency` at a time."""
        turn = asyncio.Semaphore(concurrency)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600)) as session:

            async def one(ids: list[int]) -> Reply:
                async with turn:
                    return await self._one(session, ids, num_tokens)

            return list(await asyncio.gather(*(one(ids) for ids in prompts)))

    async def flush_cache(self) -> None:
        """Forget every prefix, so that no prompt is served from an earlier one."""
        async with aiohttp.ClientSession() as session, session.post(f"{self.url}/flush_cache") as response:
            response.raise_for_status()

    async def _one(self, session: aiohttp.ClientSession, ids: list[int], num_tokens: int) -> Reply:
        async with session.post(f"{self.url}/generate", json=request(ids, num_tokens)) as response:
            response.raise_for_status()
            answer = await response.json()
        return Reply(answer["output_ids"], int(answer["meta_info"].get("spec_verify_ct") or 0))

    async def stream(
        self, session: aiohttp.ClientSession, ids: list[int], num_tokens: int
    ) -> AsyncIterator[tuple[float, int]]:
        """(time of arrival, tokens so far) of each piece of one streamed request."""
        body = request(ids, num_tokens) | {"stream": True}
        async with session.post(f"{self.url}/generate", json=body) as response:
            async for line in response.content:
                if line.startswith(b"data:") and b"[DONE]" not in line:
                    piece = json.loads(line[5:])
                    yield time.perf_counter(), int(piece["meta_info"]["completion_tokens"])


def request(ids: list[int], num_tokens: int) -> dict[str, object]:
    """Body of a greedy request of a fixed length."""
    return {"input_ids": ids, "sampling_params": {"max_new_tokens": num_tokens, "temperature": 0, "ignore_eos": True}}


def random_prompts(rng: np.random.Generator, count: int, length: int, vocab_size: int) -> list[list[int]]:
    """Prompts that no prefix cache knows."""
    return [rng.integers(10, vocab_size, length).tolist() for _ in range(count)]


def write_random_draft_like(placeholder: Path, folder: Path, seed: int) -> str:
    """Write a draft of random weights and of the placeholder's shapes; returns its digest. Accepted by chance."""
    held = load(placeholder)
    generator = torch.Generator().manual_seed(seed)
    tensors = dict(held.tensors)
    for name, tensor in tensors.items():
        if tensor.ndim == 2:
            tensors[name] = (torch.randn(tensor.shape, generator=generator) * 0.02).to(tensor.dtype)
    return save(folder, held.config, tensors).digest


async def swap_in(control: ControlClient, folder: Path, version: int, digest: str) -> None:
    """Stage the draft in `folder` (absolute) in an engine with our plug-in and swap it in."""
    await control.call("stage", COMMAND_TIMEOUT_S, directory=str(folder), version=version, digest=digest)
    await control.call("swap", COMMAND_TIMEOUT_S)


async def plugged(config: SglangSettings, aux_layers: tuple[int, ...]) -> tuple[BenchServer, ControlClient]:
    """Start an SGLang with our plug-in; it serves, and its control channel."""
    prepare(config, aux_layers)
    server = BenchServer("ours", *command(config), config.port, config.run_dir)
    try:
        await server.ready()
    except BaseException:
        await server.stop()
        raise
    return server, ControlClient(control_socket(config.run_dir, 0))


def target_of(settings: Settings) -> tuple[Path, int]:
    """The target's folder and its vocabulary size: --set target=DIR, else the demonstration's."""
    folder = Path(settings.text("target", "")) if "target" in settings.given else fetch(cache_dir())
    return folder, int(json.loads((folder / "config.json").read_text())["vocab_size"])


def ours(target: Path, run_dir: Path, *arguments: str, max_steps: int = 5) -> SglangSettings:
    """Settings of an SGLang with our plug-in."""
    return SglangSettings(
        model="bench",
        node="bench",
        run_dir=run_dir,
        model_path=target,
        arguments=("--max-total-tokens", "16384", "--max-running-requests", "16", *arguments),
        port=free_port(),
        device="cpu",
        draft_vocab_size=4096,
        max_steps=max_steps,
        plugin=PluginSettings(topk=16),
    )


def without_plugin(target: Path, folder: Path, name: str, *arguments: str) -> BenchServer:
    """The same SGLang without our plug-in."""
    port = free_port()
    user = ["--model-path", str(target), "--port", str(port), "--device", "cpu"]
    completed = launch([*user, "--max-total-tokens", "16384", "--max-running-requests", "16", *arguments])
    environment = dict(completed.environment) | {"SGLANG_PLUGINS": "none", "HF_HUB_OFFLINE": "1"}
    return BenchServer(name, completed.arguments, environment, port, folder)

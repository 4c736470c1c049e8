"""What capturing and publishing cost the serving side.

Three SGLang servers on the same model, one running at a time (serving.py), batch 8, greedy, a fixed
number of tokens:

- plain without the plug-in and without any speculation flag, against ours at version 0 (0 steps);
- EAGLE-3 with a chain of 3 fixed by flags, without the plug-in, against ours with 3 steps and the same draft.

Ours captures every request (16 log-probabilities a row); the server role drains the ring and publishes to a
real nats-server from a process of its own while the load runs. A ratio is the median over rounds of
(ours / theirs) of two turns next to each other, first one then the other in front; cpu_ratio_* is the same
of processor seconds per token (theirs / ours), which neighbours on the machine disturb less.
"""

import asyncio
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np

from benches.serving import (
    COMMAND_TIMEOUT_S,
    BenchServer,
    ours,
    random_prompts,
    swap_in,
    target_of,
    without_plugin,
    write_random_draft_like,
)
from benches.settings import Settings
from tide_daemon.bus.embedded import EmbeddedServer, EmbeddedSettings
from tide_daemon.bus.topology import TopologyLimits, build_topology
from tide_daemon.engine.control import ControlClient
from tide_daemon.engine.sglang.settings import control_socket
from tide_daemon.engine.sglang.start import command, prepare
from tide_daemon.engine.sglang.target import default_aux_layers, read_config

SETTLE_S = 3.0


def run(settings: Settings) -> dict[str, float]:
    return asyncio.run(_run(settings))


async def _run(settings: Settings) -> dict[str, float]:
    target, vocab_size = target_of(settings)
    rounds = settings.integer("rounds", 12)
    num_tokens = settings.integer("tokens", 64)
    batch = settings.integer("batch", 8)
    prompt_tokens = settings.integer("prompt_tokens", 64)
    work = settings.work_dir
    config = ours(target, work / "ours")
    layers = default_aux_layers(int(read_config(target)["num_hidden_layers"]))
    prepare(config, layers)
    draft = work / "draft"
    digest = write_random_draft_like(config.run_dir / "placeholder", draft, seed=1)
    nats = EmbeddedServer(EmbeddedSettings(work / "nats", build_topology(TopologyLimits()).max_bytes), told=print)
    url = await nats.start()
    arguments, environment = command(config)
    mine = BenchServer("ours", arguments, environment, config.port, config.run_dir)
    servers = [mine]
    daemon: subprocess.Popen[str] | None = None
    try:
        await mine.ready()
        mine.pause()
        plain = without_plugin(target, work / "plain", "plain")
        servers.append(plain)
        await plain.ready()
        plain.pause()
        flags = ["--speculative-algorithm", "EAGLE3", "--speculative-draft-model-path", str(draft)]
        flags += [
            "--speculative-num-steps",
            "3",
            "--speculative-eagle-topk",
            "1",
            "--speculative-num-draft-tokens",
            "4",
        ]
        spec = without_plugin(target, work / "spec", "spec", *flags)
        servers.append(spec)
        await spec.ready()
        spec.pause()
        mine.resume()
        daemon = _start_daemon(config.run_dir, target, config.port, url)
        rng = np.random.default_rng(0)

        async def turns(theirs: BenchServer, kind: str) -> dict[str, float]:
            pairs = []
            for number in range(rounds + 1):
                prompts = random_prompts(rng, batch, prompt_tokens, vocab_size)
                order = [mine, theirs] if number % 2 == 0 else [theirs, mine]
                pair = {server.name: await _turn(server, prompts, num_tokens) for server in order}
                if number:  # the first one warms up
                    pairs.append((pair[theirs.name], pair[mine.name]))
            return _figures(kind, pairs, batch * num_tokens)

        figures = await turns(plain, "plain")
        control = ControlClient(control_socket(config.run_dir, 0))
        mine.resume()
        # While it stood still its daemon's calls piled up; more are turned away until those are through.
        await asyncio.sleep(SETTLE_S)
        await swap_in(control, draft, 1, digest)
        await control.call("set_steps", COMMAND_TIMEOUT_S, table=[[64, 3]])
        mine.pause()
        figures |= await turns(spec, "spec")
        mine.resume()
        stats = await control.call("stats", COMMAND_TIMEOUT_S)
        figures["rows_written"] = stats["rows_written"]
        figures["rows_dropped"] = stats["rows_dropped"]
        if stats["problems"]:
            raise RuntimeError(f"the plug-in reports problems: {stats['problems']}")
        daemon.terminate()
        figures["rows_published"] = float(daemon.communicate(timeout=60)[0].split()[-1])
        return figures
    finally:
        if daemon is not None and daemon.poll() is None:
            daemon.kill()
            daemon.wait()
        for server in servers:
            await server.stop()
        await nats.stop()


async def _turn(server: BenchServer, prompts: list[list[int]], num_tokens: int) -> tuple[float, float]:
    """(wall seconds, processor seconds) of one batch."""
    server.resume()
    cpu = server.cpu_s()
    wall = await server.generate(prompts, num_tokens)
    cpu = server.cpu_s() - cpu
    server.pause()
    print(f"{server.name}: {len(prompts) * num_tokens / wall:.1f} tokens/s, {cpu:.1f} s of processor", file=sys.stderr)
    return wall, cpu


def _figures(kind: str, pairs: list[tuple[tuple[float, float], tuple[float, float]]], tokens: int) -> dict[str, float]:
    """Ratios from pairs of (theirs, mine)."""
    return {
        f"ratio_{kind}": statistics.median(theirs[0] / mine[0] for theirs, mine in pairs),
        f"cpu_ratio_{kind}": statistics.median(theirs[1] / mine[1] for theirs, mine in pairs),
        f"tokens_s_{kind}": statistics.median(tokens / mine[0] for _, mine in pairs),
    }


def _start_daemon(run_dir: Path, target: Path, port: int, url: str) -> subprocess.Popen[str]:
    """The server role in its own process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benches.capture_daemon", str(run_dir), str(target), str(port), url],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    while (line := process.stdout.readline()) != "running\n":
        if not line:
            raise RuntimeError("the server role did not start")
    return process

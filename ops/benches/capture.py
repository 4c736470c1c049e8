"""What capturing and publishing cost the serving side.

Three SGLang servers on the same model, of which never more than one runs, batch 8, greedy, a fixed number of tokens:

- plain without the plug-in and without any speculation flag, against ours at version 0 (0 steps);
- EAGLE-3 with a chain of 3 fixed by flags, without the plug-in, against ours with 3 steps and the same draft.

Ours captures every request (16 log-probabilities a row); the server role drains the ring and publishes to a
real nats-server from a process of its own while the load runs, and stands still when ours does. In a round both
serve the same prompts, taking turns of `turn_s` (alternate.py), first one then the other in front. ratio_* is
the median over rounds of theirs / ours in seconds, error_* the standard error of the rounds' mean, cpu_ratio_* as
ratio_* in processor seconds.
"""

import asyncio
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np

from benches.alternate import Group, Joined, Side, alternate, standard_error
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


def run(settings: Settings) -> dict[str, float]:
    return asyncio.run(_run(settings))


async def _run(settings: Settings) -> dict[str, float]:
    target, vocab_size = target_of(settings)
    rounds = settings.integer("rounds", 12)
    num_tokens = settings.integer("tokens", 64)
    batch = settings.integer("batch", 8)
    turn_s = settings.number("turn_s", 0.5)
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
        with_daemon = Joined(mine, Group(daemon.pid))
        rng = np.random.default_rng(0)

        async def rounds_against(theirs: BenchServer, kind: str) -> dict[str, float]:
            with_daemon.pause()
            pairs = []
            for number in range(rounds + 1):
                prompts = random_prompts(rng, batch, prompt_tokens, vocab_size)
                order: list[tuple[Side, BenchServer]] = [(with_daemon, mine), (theirs, theirs)]
                pair = await _round(order if number % 2 == 0 else order[::-1], prompts, num_tokens, turn_s)
                if number:  # the first one warms up
                    pairs.append((pair[theirs.name], pair[mine.name]))
            with_daemon.resume()
            return _figures(kind, pairs, batch * num_tokens)

        figures = await rounds_against(plain, "plain")
        control = ControlClient(control_socket(config.run_dir, 0))
        await swap_in(control, draft, 1, digest)
        await control.call("set_steps", COMMAND_TIMEOUT_S, table=[[64, 3]])
        figures |= await rounds_against(spec, "spec")
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


async def _round(
    order: list[tuple[Side, BenchServer]], prompts: list[list[int]], num_tokens: int, turn_s: float
) -> dict[str, tuple[float, float]]:
    """(seconds, processor seconds) of each server for one batch."""
    servers = [server for _, server in order]
    before = [server.cpu_s() for server in servers]
    spent = await alternate(
        [side for side, _ in order], [server.generate(prompts, num_tokens) for server in servers], turn_s
    )
    cpu = [server.cpu_s() - start for server, start in zip(servers, before, strict=True)]
    found = {server.name: (wall, used) for server, (_, wall), used in zip(servers, spent, cpu, strict=True)}
    tokens = len(prompts) * num_tokens
    print(", ".join(f"{name} {tokens / wall:.1f} tokens/s" for name, (wall, _) in found.items()), file=sys.stderr)
    return found


def _figures(kind: str, pairs: list[tuple[tuple[float, float], tuple[float, float]]], tokens: int) -> dict[str, float]:
    """Ratios from pairs of (theirs, mine)."""
    ratios = [theirs[0] / mine[0] for theirs, mine in pairs]
    return {
        f"ratio_{kind}": statistics.median(ratios),
        **standard_error(f"error_{kind}", ratios),
        f"cpu_ratio_{kind}": statistics.median(theirs[1] / mine[1] for theirs, mine in pairs),
        f"tokens_s_{kind}": statistics.median(tokens / mine[0] for _, mine in pairs),
    }


def _start_daemon(run_dir: Path, target: Path, port: int, url: str) -> subprocess.Popen[str]:
    """The server role in its own process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benches.capture_daemon", str(run_dir), str(target), str(port), url],
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    assert process.stdout is not None
    while (line := process.stdout.readline()) != "running\n":
        if not line:
            raise RuntimeError("the server role did not start")
    return process

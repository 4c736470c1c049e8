"""Starts the system that is demonstrated: a private nats-server and the three roles, each a process.

The roles are started as an operator would, `tide-daemon --role R --config FILE`; nothing here reaches
into them. What the demonstration knows it learns from /readyz and from the bus.
"""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from demo_run.ports import free_port
from demo_run.processes import Child, Children
from demo_run.waiting import StartError, poll
from tide_daemon.engine.sglang.process import RECORD

ROLES = ("controller", "trainer", "server")
MODEL = "smollm2-135m"
AUX_LAYERS = [0, 15, 28]
"""Layer 0 still knows which token it was (what copying heads look for), 28 is nearest to what the head reads."""
MAX_STEPS = 5
SERVER_ARGUMENTS = ["--max-total-tokens", "16384", "--max-running-requests", "8", "--context-length", "2048"]
DRAFT_VOCAB_SIZE = 4096
"""Covers 90% of what this target writes; larger ones gained nothing with the data of a quarter of an hour."""
TomlValue = str | int | float | bool | list[int] | list[str]


@dataclass(frozen=True, slots=True)
class Stack:
    """Addresses of the running system."""

    nats_url: str
    openai_url: str
    status_urls: Mapping[str, str]
    config_files: Mapping[str, Path]


def engine_pid(state: Path) -> int:
    """SGLang's first process under the server role that writes to the folder `state`; 0 while there is none."""
    try:
        return int(json.loads((state / "server" / "run" / "engine" / RECORD).read_text())["pid"])
    except (OSError, ValueError, KeyError):
        return 0


def to_toml(sections: Mapping[str, Mapping[str, TomlValue]]) -> str:
    """Sections of plain values as TOML; JSON's spelling of strings, numbers and lists is valid there."""
    lines = []
    for name, values in sections.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        lines.append("")
    return "\n".join(lines)


def role_config(
    role: str, state: Path, model_dir: Path, nats_url: str, openai_port: int, status_port: int, server_args: list[str]
) -> dict[str, dict[str, TomlValue]]:
    """The configuration of one role: what a demonstration of minutes needs other than the defaults."""
    config: dict[str, dict[str, TomlValue]] = {
        "node": {"name": f"demo-{role}", "model": MODEL, "state_dir": str(state / role), "drain_deadline_s": 15.0},
        "bus": {"url": nats_url},
        "status": {"port": status_port},
        "log": {"format": "json"},
    }
    draft: dict[str, TomlValue] = {"vocab_size": DRAFT_VOCAB_SIZE}
    if role == "server":
        config["draft"] = draft | {"aux_layer_ids": AUX_LAYERS, "max_steps": MAX_STEPS}
        config["server"] = {"model_path": str(model_dir), "port": openai_port, "arguments": server_args}
    elif role == "trainer":
        config["draft"] = draft
        # No target_path: embedding, norm and head come over the bus, as on a trainer node without the target's files.
        # Small rounds and a large held-out share: minutes of traffic must be enough for several verdicts.
        config["trainer"] = {
            "device": "cpu",  # a GPU, if there is one, is the server's
            "round_min_tokens": 800,
            "round_max_tokens": 12_000,
            "batch_tokens": 512,
            "heldout_share": 0.25,
            # The gate shall judge by the traffic of the last minutes, and a change be seen within seconds.
            "heldout_max_requests": 24,
            "shadow_interval_s": 10.0,
            # It shares two cores with the server here; on a machine of its own it need not stand back.
            "only_idle": True,
            "report_interval_s": 1.0,
        }
    else:
        config["draft"] = {"max_steps": MAX_STEPS}
        config["controller"] = {
            "train_first_tokens": 1500,
            "train_min_tokens": 2000,
            "train_shift_tokens": 1500,
            "gate_min_requests": 4,
        }
    return config


async def wait_until_ready(child: Child, url: str, timeout_s: float) -> None:
    """Return when `url` answers 200.

    Raises:
        StartError: the process ended, or the time is over. The message shows the end of its log.
    """
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:

        async def answers() -> bool:
            if not child.running:
                raise StartError(f"{child.name} ended with code {child.popen.poll()}:\n{child.last_lines()}")
            try:
                async with session.get(url) as response:
                    return response.status == 200
            except (aiohttp.ClientError, TimeoutError):
                return False

        await poll(answers, timeout_s, f"{child.name} (its log: {child.log})")


async def start_roles(
    children: Children, state: Path, model_dir: Path, nats_url: str, server_args: list[str]
) -> tuple[Stack, dict[str, Child]]:
    """Start controller, trainer and server; returns at once, see `wait_until_ready`."""
    openai_port = free_port()
    status, files, started = {}, {}, {}
    for role in ROLES:
        port = free_port()
        config = role_config(role, state, model_dir, nats_url, openai_port, port, server_args)
        path = state / f"{role}.toml"
        path.write_text(to_toml(config))
        command = [str(Path(sys.executable).with_name("tide-daemon")), "--role", role, "--config", str(path)]
        started[role] = children.start(role, command, {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")})
        status[role], files[role] = f"http://127.0.0.1:{port}", path
    return Stack(nats_url, f"http://127.0.0.1:{openai_port}", status, files), started

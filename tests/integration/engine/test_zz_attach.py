"""SGLang that somebody else starts, by the command that our own tool gives, and a daemon that comes and goes.

After test_capture.py: it starts an SGLang of its own.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tide_daemon.engine.port import NO_EPOCH, DraftState
from tide_daemon.engine.sglang.launcher import SglangEngine

from .server import Server, settings_for
from .tiny_target import AUX_LAYERS, DRAFT_VOCAB, write_memorised_draft

pytestmark = [pytest.mark.sglang, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]


async def test_sglang_started_by_its_owner_is_found_and_left_alone(
    target: Path, short_dir: Path, prompts: list[list[int]]
) -> None:
    """`tide-daemon sglang --exec` is SGLang with the plug-in; a daemon attaches, swaps a draft in, and goes."""
    settings = settings_for(target, short_dir / "run" / "engine")
    wanted = {
        "node.model": "tiny", "node.name": "node-1", "node.run_dir": short_dir / "run",
        "node.state_dir": short_dir / "state", "bus.url": "nats://127.0.0.1:4222", "server.mode": "attach",
        "server.model_path": target, "server.port": settings.port, "server.device": "cpu",
        "draft.aux_layer_ids": ",".join(map(str, AUX_LAYERS)), "draft.vocab_size": DRAFT_VOCAB,
    }  # fmt: skip
    words = [word for key, value in wanted.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "tide_daemon", "sglang", *words]
    told = await asyncio.to_thread(printed, [*command, "--json", "--", *settings.arguments])
    assert told["environment"]["TIDE_ENGINE_DIR"] == str(settings.run_dir)
    assert told["command"][1:3] == ["-m", "sglang.launch_server"]
    assert "--max-running-requests" in told["command"]
    process = await asyncio.create_subprocess_exec(
        *(*command, "--exec", "--", *settings.arguments),
        stdout=subprocess.DEVNULL,
        stderr=(short_dir / "log").open("wb"),
        start_new_session=True,
    )
    try:
        attached = Server(SglangEngine(replace(settings, attach=True)), settings)
        await attached.engine.start()
        await attached.ready()
        assert (await attached.engine.stats()).epoch != NO_EPOCH
        plain = await attached.generate(prompts[:2], 8)
        made = write_memorised_draft(short_dir / "draft", target, prompts, seed=3)
        await attached.engine.swap(str(short_dir / "draft"), DraftState(7, made.digest))
        await attached.engine.set_steps(((8, 2),))
        assert await attached.generate(prompts[:2], 8) == plain
        assert any(step.num_steps == 2 for step in (await attached.engine.stats()).steps)
        await attached.engine.stop(1.0)
        assert process.returncode is None, (short_dir / "log").read_text()[-2000:]
        assert await attached.generate(prompts[:2], 8) == plain, "it serves on when the daemon has gone"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def printed(command: list[str]) -> dict[str, Any]:
    """What a command prints as JSON."""
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)

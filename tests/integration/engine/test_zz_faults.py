"""kill -9 of SGLang and of the daemon, and an SGLang that is not what the plug-in was written for.

Last in its folder: it kills the session's SGLang.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tide_daemon.engine.port import DraftState
from tide_daemon.engine.sglang import start
from tide_daemon.engine.sglang.launcher import SglangEngine
from tide_daemon.engine.sglang.process import EngineProcess

from .server import MAX_BYTES, START_TIMEOUT_S, Server, free_port, settings_for
from .tiny_target import write_memorised_draft

pytestmark = [pytest.mark.sglang, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]


async def wait_for_state(server: Server, state: str, starts: int) -> None:
    until = time.monotonic() + START_TIMEOUT_S
    while True:
        stats = await server.engine.stats()
        if stats.state == state and stats.engine_starts >= starts:
            return
        assert time.monotonic() < until, stats
        await asyncio.sleep(0.1)


async def test_killed_daemon_leaves_sglang_serving_and_the_next_one_adopts_it(
    server: Server, prompts: list[list[int]]
) -> None:
    """Without a daemon requests go on and the ring drops at most; a new daemon continues with the same process."""
    process = server.engine._process
    assert process is not None
    server.engine._task.cancel()  # what kill -9 leaves: nobody watches, nobody reads
    server.engine._link.close()
    before = await server.generate(prompts[:2], 6)

    next_engine = SglangEngine(server.settings)
    await next_engine.start()
    adopted = Server(next_engine, server.settings)
    await wait_for_state(adopted, "ready", 1)
    assert next_engine._process is not None
    assert next_engine._process.pid == process.pid
    assert next_engine._process.adopted
    chunks = await adopted.chunks()
    assert len({chunk.request_id for chunk in chunks}) >= 2, "rows written meanwhile are still there"
    assert await adopted.generate(prompts[:2], 6) == before
    server.engine = next_engine


async def test_killed_scheduler_is_started_again(
    server: Server, target: Path, prompts: list[list[int]], tmp_path: Path
) -> None:
    """kill -9 of the scheduler: reported down, started again at version 0 with a new epoch, swappable again."""
    expected = await server.generate(prompts[:2], 6)
    made = write_memorised_draft(tmp_path / "d", target, prompts, seed=3)
    await server.engine.swap(str(tmp_path / "d"), DraftState(401, made.digest))
    before = await server.engine.stats()
    hello = await server.engine._link._ranks["ctl-0.sock"].control.call("hello", 5)
    os.kill(hello["pid"], signal.SIGKILL)
    await wait_for_state(server, "down", before.engine_starts)
    await wait_for_state(server, "ready", before.engine_starts + 1)
    after = await server.engine.stats()
    assert after.epoch != before.epoch
    assert after.draft == DraftState(0, "")
    assert await server.generate(prompts[:2], 6) == expected
    state = DraftState(401, made.digest)
    assert await server.engine.swap(str(tmp_path / "d"), state) == state
    chunks = await server.chunks()
    assert all(chunk.last for chunk in chunks if chunk.incomplete)


async def test_stop_leaves_no_process_and_no_ring(server: Server) -> None:
    """After stop neither a process of the group nor a ring file is left."""
    process = server.engine._process
    assert process is not None
    ring = server.engine._link._ranks["ctl-0.sock"].ring
    assert ring is not None
    await server.engine.stop(5.0)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert not ring.path.exists()
    assert EngineProcess.left_behind(server.settings.run_dir) is None
    assert (await server.engine.stats()).state == "down"


HOOK_BREAKER = """
import sglang.srt.plugins.hook_registry as registry
from tide_daemon.engine.sglang import hooks

def register():
    from tide_daemon.engine.sglang.settings import engine_dir
    import multiprocessing
    if multiprocessing.parent_process() is not None:
        hooks.TARGETS["sglang.srt.speculative.eagle_worker_v2.EAGLEWorkerV2.gone"] = hooks._steps
        hooks.register(engine_dir())
"""


async def test_hook_that_does_not_take_leaves_serving_on(
    target: Path, short_dir: Path, prompts: list[list[int]]
) -> None:
    """A missing hook target: one clear report, capture, swap and steps off, requests are served plainly."""
    package = short_dir / "lib"
    info = package / "breaker-1.dist-info"
    info.mkdir(parents=True)
    (package / "breaker.py").write_text(textwrap.dedent(HOOK_BREAKER))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: breaker\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[sglang.srt.plugins]\nbreaker = breaker:register\n")
    settings = settings_for(target, short_dir / "run")
    settings.environment["PYTHONPATH"] = str(package)
    arguments, environment = start.command(settings)
    # The launcher adds "tide" to a whitelist; here only the breaker's copy of the hooks shall load.
    environment["SGLANG_PLUGINS"] = "breaker"
    start.prepare(settings, settings.aux_layer_ids)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sglang.launch_server", *arguments),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        engine = SglangEngine(replace(settings, attach=True))
        await engine.start()
        attached = Server(engine, settings)
        until = time.monotonic() + START_TIMEOUT_S
        while (stats := await engine.stats()).state != "capture_off":
            assert time.monotonic() < until, stats
            await asyncio.sleep(0.3)
        assert "hooks did not take" in " ".join(stats.problems)
        assert "EAGLEWorkerV2.gone" in " ".join(stats.problems)
        while not await engine._serves():
            assert time.monotonic() < until
            await asyncio.sleep(0.3)
        answers = await attached.generate(prompts[:2], 5)
        assert [len(ids) for ids in answers] == [5, 5]
        assert engine.take_chunks(MAX_BYTES) == []
        await engine.stop(1.0)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def test_a_taken_port_is_reported_and_nothing_is_started(target: Path, short_dir: Path) -> None:
    """Another program listens where SGLang shall: that is said at once, and no model is loaded meanwhile."""
    settings = settings_for(target, short_dir)
    with socket.create_server(("127.0.0.1", settings.port)):
        engine = SglangEngine(settings)
        await engine.start()
        until = time.monotonic() + 20.0
        while "in use" not in (said := " ".join((stats := await engine.stats()).problems)):
            assert time.monotonic() < until, said
            await asyncio.sleep(0.1)
        await engine.stop(1.0)
    assert f"127.0.0.1:{settings.port}" in said
    assert stats.engine_starts == 0


async def test_engine_that_cannot_start_is_retried_and_reported(target: Path, short_dir: Path) -> None:
    """Wrong arguments: the report holds SGLang's own last words, and it is tried again with growing pauses."""
    engine = SglangEngine(settings_for(target, short_dir, "--no-such-flag"))
    await engine.start()
    server = Server(engine, engine._settings)
    until = time.monotonic() + START_TIMEOUT_S
    while (stats := await engine.stats()).engine_starts < 2:
        assert time.monotonic() < until
        await asyncio.sleep(0.2)
    assert "no-such-flag" in " ".join(stats.problems)
    assert await asyncio.to_thread(free_port)
    await server.engine.stop(1.0)

"""Faults of the server node: SGLang, its daemon, the memory and the port between them."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable
from pathlib import Path

from fault_runs.run import Inflicting


async def sglang_killed(run: Inflicting) -> None:
    stage, pid = run.stage, run.stage.engine_pid()
    token = (await stage.role("controller"))["fencing_token"]
    pids = {name: child.popen.pid for name, child in stage.roles.items()}
    _expect_engine_lost(run)
    os.kill(pid, signal.SIGKILL)
    run.over()
    await run.until("SGLang serves again", _engine_ready(run, pid), 300.0)
    run.check("another process serves", stage.engine_pid() != pid)
    run.check("the leader leads on", (await stage.role("controller"))["fencing_token"] == token)
    run.check("the daemons live on", all(stage.roles[name].popen.pid == pid for name, pid in pids.items()))


async def sglang_hung(run: Inflicting) -> None:
    pid = run.stage.engine_pid()
    _expect_engine_lost(run)
    os.killpg(pid, signal.SIGSTOP)
    run.over()
    await run.until("another SGLang serves", _engine_ready(run, pid), 400.0)


async def server_daemon_killed(run: Inflicting) -> None:
    stage, pid = run.stage, run.stage.engine_pid()
    swaps = (await stage.role("server"))["num_swaps"]
    run.expect_restart("server")
    stage.kill("server")
    await asyncio.sleep(5.0)
    await stage.start_role("server")
    run.over()
    await run.until("it is ready", stage.all_ready, 120.0)
    if stage.engine == "sglang":
        run.check("the same SGLang serves on", stage.engine_pid() == pid)
        run.check("no second swap", (await stage.role("server")).get("num_swaps") == swaps)


async def ring_reader_frozen(run: Inflicting) -> None:
    stage = run.stage
    # Frozen it cannot say so itself: its endpoint does not answer, and the controller misses its reports.
    run.expect("the server's endpoint is silent", "server", lambda status: not status, lambda metrics: not metrics)
    run.expect(
        "the controller misses the node",
        "controller",
        lambda status: status["roles"]["controller"]["snapshot"]["num_nodes"] == 0,
        lambda metrics: metrics["tide_server_nodes"] == 0,
    )
    stage.freeze("server")
    await asyncio.sleep(30.0)
    stage.thaw("server")
    run.over()


async def shared_memory_left_over(run: Inflicting) -> None:
    stage, pid = run.stage, run.stage.engine_pid()
    _expect_engine_lost(run, restarted=True)
    stage.kill("server")
    os.killpg(pid, signal.SIGKILL)
    left = await asyncio.to_thread(_dead_ring, stage.folder / "server" / "run" / "engine")
    run.check("a dead ring lies there", left in _rings(left))
    await stage.start_role("server")
    run.over()
    await run.until("another SGLang serves", _engine_ready(run, pid), 300.0)
    run.check("the dead ring is removed", left not in _rings(left))


async def port_taken(run: Inflicting) -> None:
    stage, pid = run.stage, run.stage.engine_pid()
    _expect_engine_lost(run)
    os.killpg(pid, signal.SIGKILL)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        while True:
            try:
                taken.bind(("127.0.0.1", stage.openai_port))
                break
            except OSError:
                await asyncio.sleep(0.1)
        taken.listen()

        async def told() -> bool:
            said = " ".join((await stage.role("server"))["problems"])
            run.notes["said"] = said[-400:]
            return "address already in use" in said.lower()

        await run.until("the daemon says why SGLang does not start", told, 300.0)
        await asyncio.sleep(20.0)  # it tries again meanwhile
    run.over()
    await run.until("SGLang serves again", _engine_ready(run, pid), 400.0)


def _expect_engine_lost(run: Inflicting, *, restarted: bool = False) -> None:
    run.expect_unwell("server", "server.engine")
    run.expect(
        "the engine was started again",
        "server",
        lambda status: (
            status["roles"]["server"]["snapshot"]["engine"] == "ready"
            and (restarted or status["roles"]["server"]["snapshot"]["engine_starts"] > 1)
        ),
        lambda metrics: metrics["tide_ready"] == 1 and (restarted or metrics["tide_engine_starts_total"] > 1),
    )


def _engine_ready(run: Inflicting, old_pid: int) -> Callable[[], Awaitable[bool]]:
    async def ready() -> bool:
        shown = await run.stage.role("server")
        return run.stage.engine_pid() != old_pid and shown.get("engine") == "ready"

    return ready


_MAKE_RING = """
    import os, sys
    from pathlib import Path
    from tide_daemon.engine.ring import RingWriter
    from tide_daemon.engine.ring_layout import RingLayout
    from tide_daemon.engine.sglang.settings import PluginSettings, ring_prefix

    path = Path(PluginSettings().ring_dir) / f"{ring_prefix(Path(sys.argv[1]))}9.ring"
    RingWriter(path, RingLayout(64, 96, 4))
    print(path, flush=True)
    os.kill(os.getpid(), 9)
"""


def _dead_ring(engine_dir: Path) -> Path:
    """The ring of a writer that was killed, under this node's name."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_MAKE_RING), str(engine_dir)],
        capture_output=True,
        text=True,
        check=False,
    )
    return Path(done.stdout.strip() or "/no-ring-was-made")


def _rings(one: Path) -> list[Path]:
    """All rings in the folder of this one."""
    return list(one.parent.glob("*.ring"))

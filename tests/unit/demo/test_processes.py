"""Children of the demonstration come back after a failure, as they would under systemd, and only then."""

import asyncio
import sys
from pathlib import Path

import pytest
from demo_run import processes
from demo_run.processes import Children
from demo_run.waiting import poll


async def test_a_killed_child_is_started_again_and_one_that_ended_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "RESTART_AFTER_S", 0.05)
    children, told = Children(tmp_path / "log"), list[str]()
    killed = children.start("killed", [sys.executable, "-c", "import time; time.sleep(600)"])
    ended = children.start("ended", [sys.executable, "-c", "pass"])
    misconfigured = children.start("misconfigured", [sys.executable, "-c", "raise SystemExit(2)"])
    keeping = asyncio.create_task(children.keep_alive(told.append))
    try:

        async def both_ended() -> bool:
            return not ended.running and not misconfigured.running

        async def came_back() -> bool:
            return killed.popen.pid != first

        await poll(both_ended, 20.0, "the two ends")
        first = killed.popen.pid
        killed.popen.kill()
        await poll(came_back, 20.0, "the restart")
        assert killed.running
        assert told == ["killed ended with code -9: started again"]
        assert (ended.popen.returncode, misconfigured.popen.returncode) == (0, 2)
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        children.stop(deadline_s=5.0)
    assert not killed.running

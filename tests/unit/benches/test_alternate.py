"""Only one side runs at any moment, and each side's seconds are those of its own turns."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from benches.alternate import Group, Joined, alternate

SPIN_S = 0.25
COUNT = f"import time\nwhile time.process_time() < {SPIN_S}: pass"


class Counted:
    """Notes which sides run."""

    running: set[str]

    def __init__(self, name: str, running: set[str]) -> None:
        self._name, self.running = name, running

    def pause(self) -> None:
        self.running.discard(self._name)

    def resume(self) -> None:
        assert not self.running, "another side runs"
        self.running.add(self._name)


async def test_one_at_a_time() -> None:
    running: set[str] = set()
    sides = [Counted("a", running), Counted("b", running)]

    async def work(name: str, seconds: float) -> str:
        """Done after so many seconds of its own turns."""
        own = 0.0
        while own < seconds:
            before = time.perf_counter()
            await asyncio.sleep(0.005)
            if name in running:
                own += time.perf_counter() - before
        return name

    found = await alternate(sides, [work("a", 0.1), work("b", 0.3)], 0.05)

    assert [result for result, _ in found] == ["a", "b"]
    assert not running
    assert found[1][1] > found[0][1] + 0.1


async def test_a_failure_ends_all() -> None:
    running: set[str] = set()

    async def fails() -> None:
        raise RuntimeError("refused")

    with pytest.raises(RuntimeError, match="refused"):
        await alternate([Counted("a", running)], [fails()], 0.05)
    assert not running


@pytest.fixture
def children() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two processes that end after SPIN_S of a core each."""
    started = [subprocess.Popen([sys.executable, "-c", COUNT], start_new_session=True) for _ in range(2)]
    yield started
    for child in started:
        child.kill()
        child.wait()


async def test_processes_stand_still(children: list[subprocess.Popen[bytes]]) -> None:
    sides = [Joined(Group(child.pid)) for child in children]
    for side in sides:
        side.pause()

    found = await alternate(sides, [asyncio.to_thread(child.wait, 60) for child in children], 0.05)

    assert [code for code, _ in found] == [0, 0]
    assert min(seconds for _, seconds in found) >= SPIN_S * 0.5

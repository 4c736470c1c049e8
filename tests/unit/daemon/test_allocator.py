"""Memory of drafts that came and went is given back."""

import subprocess
import sys

from tide_daemon import allocator

SCRIPT = """
import asyncio, sys
from tide_daemon.allocator import give_memory_back
assert give_memory_back()

def resident() -> int:
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def work() -> list[bytes]:
    return [bytes(700_000) for _ in range(40)]

async def main() -> None:
    await asyncio.gather(*(asyncio.to_thread(work) for _ in range(4)))
    before = resident()
    for _ in range(10):
        await asyncio.gather(*(asyncio.to_thread(work) for _ in range(4)))
    sys.exit(resident() - before > 8_000_000)

asyncio.run(main())
"""


def test_large_blocks_of_threads_are_returned() -> None:
    """After much that was allocated in threads, a process is as large as before."""
    assert subprocess.run([sys.executable, "-c", SCRIPT], timeout=60, check=False).returncode == 0


def test_another_c_library_is_left_alone(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Where there is no mallopt nothing is done."""
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    assert not allocator.give_memory_back()

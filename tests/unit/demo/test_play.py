"""The run of the phases, on a stage that is made up."""

from collections.abc import AsyncIterator, Awaitable, Callable
from io import StringIO
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from demo_run.load import Prompt, SliceResult
from demo_run.phase_run import Load
from demo_run.phases import PHASES
from demo_run.play import play
from demo_run.stack import Stack
from demo_run.stage import Stage
from rich.console import Console

from tide_daemon.bus.memory import MemoryBroker, MemoryBus
from tide_daemon.bus.topology import TopologyLimits, build_topology

PROMPTS = {phase.name: [Prompt(f"{phase.name} {k}", phase.workload) for k in range(3)] for phase in PHASES}


async def answer(request: web.Request) -> web.StreamResponse:
    """Three tokens to whatever is asked."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await response.write(b'data: {"choices": [], "usage": {"completion_tokens": 3}}\n\ndata: [DONE]\n\n')
    return response


@pytest.fixture
async def url() -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


class MadeUpBaseline:
    """Serves at the same address; has never been given a draft."""

    spec = None
    has_frozen = False

    def __init__(self, url: str) -> None:
        self.url = url
        self.modes: list[str] = []

    async def measure(
        self, mode: str, session: Any, serve: Callable[[], Awaitable[SliceResult]]
    ) -> tuple[SliceResult, float | None]:
        self.modes.append(mode)
        return await serve(), 1.0


async def test_phases_are_played_in_order(url: str, tmp_path: Path) -> None:
    """Each phase serves its own prompts; without a draft nothing is frozen, and the console is told so."""
    topology = build_topology(TopologyLimits())
    baseline, out = MadeUpBaseline(url), StringIO()
    async with aiohttp.ClientSession() as session:
        bus = MemoryBus(MemoryBroker(topology))
        stage = Stage(tmp_path, Stack("", url, {}, {}), None, {}, baseline, bus, session)  # type: ignore[arg-type]
        played = await play(stage, PROMPTS, 0.3, Load.of(2), Console(file=out), tmp_path)
    assert [name for name, _ in played.starts] == [phase.name for phase in PHASES]
    tide = [measured.phase for measured in played.results.slices if measured.mode == "tide"]
    assert tide == [phase.name for phase in PHASES]
    plain = [measured.phase for measured in played.results.slices if measured.mode == "plain"]
    assert plain == tide, "each slice is served plainly too"
    assert set(baseline.modes) == {"plain"}
    assert "none to freeze" in out.getvalue()
    assert played.num_failed == 0

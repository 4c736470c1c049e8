"""The engine contract on real SGLang."""

from pathlib import Path

import pytest
import pytest_asyncio

from tests.contract.engine_contract import EngineContract, Subject

from .server import Server
from .tiny_target import write_memorised_draft

pytestmark = [pytest.mark.sglang, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]


class TestSglangEngine(EngineContract):
    """The shared suite."""

    @pytest_asyncio.fixture(loop_scope="session")
    async def subject(self, server: Server, target: Path, prompts: list[list[int]], tmp_path: Path) -> Subject:
        drafts = []
        for seed in (1, 2):
            made = write_memorised_draft(tmp_path / str(seed), target, prompts, seed=seed)
            drafts.append((tmp_path / str(seed), made.digest))

        async def serve() -> None:
            await server.generate(prompts[:8], 12)

        return Subject(server.engine, serve, server.chunks, drafts)

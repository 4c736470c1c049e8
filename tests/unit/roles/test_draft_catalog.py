"""The catalog of draft versions, as its loops end."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tide_daemon.bus.memory import MemoryBroker, MemoryBus
from tide_daemon.bus.port import StoredMessage
from tide_daemon.bus.topology import TopologyLimits, build_topology
from tide_daemon.errors import BusSetupError
from tide_daemon.roles.draft_catalog import DraftCatalog


class ForbiddenBus(MemoryBus):
    """Drafts may not be followed."""

    async def tail(self, subject: str, *, since: str = "new", sequence: int = 0) -> AsyncIterator[StoredMessage]:
        if subject.startswith("tide.v1.draft."):
            raise BusSetupError(f"cannot follow {subject}")
        async for message in super().tail(subject, since=since, sequence=sequence):
            yield message


async def test_a_stream_that_may_not_be_read_ends_it_with_that_reason() -> None:
    """Not with a group of reasons, which nobody expects; and nothing of it goes on."""
    catalog = DraftCatalog(ForbiddenBus(MemoryBroker(build_topology(TopologyLimits()))), "m", 3)
    before = asyncio.all_tasks()
    with pytest.raises(BusSetupError, match="cannot follow"):
        await asyncio.wait_for(catalog.run(), 5)
    assert asyncio.all_tasks() == before

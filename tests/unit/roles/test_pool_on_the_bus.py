"""The pool over the bus: what desired state says of it, and what a trainer's answer leads to."""

import asyncio
from dataclasses import replace

from tests.unit.roles import test_controller
from tests.unit.roles.test_controller import World, leads, until
from tide_daemon.policy.replay import replay
from tide_daemon.wire.records import PoolScore, PositionScore, RequestScore, ShadowScore, StoredWorkload, TrainerReport

# An earlier draft goes to its canary when the watch of the one that serves is over.
SETTINGS = replace(test_controller.SETTINGS, watch_s=0.0)


async def trainer_reports(world: World, serving: int, length: float, scoring: int = 0, *scored: PoolScore) -> None:
    world._sequence += 1
    await world.send(
        TrainerReport(
            "trainer-a", 1.0, world._sequence, "waiting", serving, 0, 9, 0, 3, 0, 0, 0, 0, 0, 0.0,
            (ShadowScore("", 4, 400, 400 * length + world._sequence / 1000),), {}, (), scoring, scored,
            (StoredWorkload("", 9, 0),),
        )
    )  # fmt: skip


async def serve(world: World, version: int, parent: int) -> None:
    """Publish a version and have the one node run it until it is the serving draft."""
    await world.publishes(version, parent)

    async def served() -> bool:
        server = await world.desired_server()
        await world.server_reports(version=parent if server is None else server.draft_version)
        await trainer_reports(world, version, 1.5)
        trainer = await world.desired_trainer()
        return trainer is not None and trainer.serving_version == version

    await until(served)


async def test_an_earlier_draft_is_asked_for_scored_and_served_again() -> None:
    """Desired state names it and asks; the answer leads to the old number on the node; all of it replays."""
    world = World()
    async with world.running(world.role(settings=SETTINGS)) as role:
        await leads(role)
        await world.server_reports()
        await serve(world, 1, 0)
        await serve(world, 2, 1)
        await world.server_reports(version=2)  # ends the watch
        for length in (2.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0):
            await trainer_reports(world, 2, length)

        async def asked() -> bool:
            trainer = await world.desired_trainer()
            return trainer is not None and trainer.pool_scoring > 0

        await until(asked)
        trainer = await world.desired_trainer()
        assert trainer is not None
        assert (trainer.pool, trainer.pool_requests) == (((1, f"{1:064x}"),), 16)
        assert "score earlier drafts: traffic has shifted" in trainer.reason
    # Another controller takes over before the answer comes.
    async with world.running(world.role("second", settings=SETTINGS)) as role:
        await leads(role)
        await world.server_reports(version=2)
        scores = tuple(
            RequestScore(
                f"{index:016x}",
                "",
                9,
                100,
                110.0,
                150.0 + index % 3,
                (PositionScore(0, 100, 110.0, 150.0 + index % 3),),
            )
            for index in range(16)
        )

        async def back() -> bool:
            await trainer_reports(world, 2, 1.0, trainer.pool_scoring, PoolScore(1, 2, 3, scores))
            server = await world.desired_server()
            return server is not None and server.draft_version == 1

        await until(back)
        server = await world.desired_server()
        assert server is not None and server.draft_digest == f"{1:064x}"
        await asyncio.sleep(0.1)
    entries = await world.journal()
    assert any("version 1, promote" in entry.reason for entry in entries)
    outcome = replay((entry.event, entry.instructions) for entry in entries)
    assert outcome.difference is None and outcome.num_compared == len(entries)

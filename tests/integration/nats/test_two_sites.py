"""Two sites over a leaf link: the far one has no stream of its own and no right that the hub did not give it."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.loop.fleet import TOPOLOGY, Fleet
from tests.integration.loop.test_loop import speculates
from tests.nats_deployment import MODEL, Deployment, FarSite
from tide_daemon import cli
from tide_daemon.bus.connection import ConnectSettings
from tide_daemon.bus.jetstream import JetStreamBus
from tide_daemon.errors import BusError
from tide_daemon.wire import subjects

FAR = ("server:s1", "trainer:t1")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Deployment]:
    hub = Deployment(tmp_path / "hub", "hub.conf")
    hub.start()
    assert cli.main(["admin", "init", "--config", str(hub.config_file("admin:a1"))]) == 0
    yield hub
    hub.stop()


@pytest.fixture
def far(tmp_path: Path, hub: Deployment) -> Iterator[FarSite]:
    far = FarSite(tmp_path / "far", hub, FAR)
    far.start()
    yield far
    far.stop()


async def linked(hub: Deployment, number: int = len(FAR)) -> None:
    """Until so many accounts have crossed."""
    async with asyncio.timeout(30):
        while (await asyncio.to_thread(hub.monitor, "nats-a", "leafz"))["leafnodes"] != number:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


class TwoSites(Fleet):
    """Server and trainer at the far site, the controller at the hub."""

    hub: Deployment
    far: FarSite

    def settings(self, role: str) -> ConnectSettings:
        user = {"server": "server:s1", "trainer": "trainer:t1", "controller": "controller:c1"}[role]
        return (self.far if user in FAR else self.hub).settings(user)

    async def prepare(self, bus: JetStreamBus) -> None:
        await bus.verify()


@pytest.fixture
async def fleet(hub: Deployment, far: FarSite, tmp_path: Path) -> AsyncIterator[TwoSites]:
    await linked(hub)
    fleet = TwoSites(far.urls, tmp_path / "fleet")
    fleet.hub, fleet.far = hub, far
    await fleet.start()
    yield fleet
    await fleet.close()


async def test_the_whole_loop_over_the_link_and_after_it_was_cut(fleet: TwoSites, hub: Deployment) -> None:
    """Chunks, reports and drafts cross, nothing was denied. The hub dies: serving goes on, the loop later."""
    await fleet.until(lambda: speculates(fleet), "a draft is served at the far site")
    assert "Violation" not in hub.log("nats-a") + fleet.far.log("far")
    assert fleet.far.monitor("far", "jsz").get("disabled"), "the far broker holds no stream"
    hub.kill("nats-a")
    before = (await fleet.engine.stats()).steps
    await asyncio.sleep(1.0)
    assert (await fleet.engine.stats()).steps != before
    hub.start()
    published = fleet.server.snapshot()["bytes_published"]

    async def goes_on() -> bool:
        return fleet.server.snapshot()["bytes_published"] > published and bool(fleet.controller.snapshot()["leading"])

    await fleet.until(goes_on, "chunks cross again")
    await fleet.drain()


async def until_stored(bus: JetStreamBus, publish: Callable[[], Awaitable[int]]) -> int:
    """A link that has just been made takes a moment to know the hub's subjects."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await publish()
            except BusError:
                await asyncio.sleep(0.2)


async def test_the_hub_holds_the_far_site_to_its_users_rights(hub: Deployment, tmp_path: Path) -> None:
    """A far broker that lets its users do anything: the hub takes what they may send, and nothing else."""
    far = FarSite(tmp_path / "rogue", hub, FAR)
    users = far.folder / "far/users.conf"
    lines = [line for line in users.read_text().splitlines() if "allow:" not in line]
    users.write_text("\n".join(lines))
    far.start()
    try:
        await linked(hub)
        bus = await JetStreamBus.connect(far.settings("server:s1"), TOPOLOGY)
        controller = await JetStreamBus.connect(hub.settings("controller:c1"), TOPOLOGY)
        try:
            report = subjects.report(MODEL, "s1", "server")
            assert await until_stored(bus, lambda: bus.publish(report, b"mine", timeout_s=1)) == 1
            victim = subjects.control_server(MODEL, "s1")
            for subject in (victim, subjects.report(MODEL, "s2", "server"), subjects.journal(MODEL)):
                with pytest.raises(BusError):
                    await bus.publish(subject, b"forged", timeout_s=1)
            purge = bus.connection.api("STREAM.PURGE.TIDE_CONTROL", {}, timeout_s=1)
            with pytest.raises(BusError):
                await purge
            assert await controller.last(victim) is None and await controller.last(subjects.journal(MODEL)) is None
        finally:
            await bus.close()
            await controller.close()
    finally:
        far.stop()


def test_only_listed_users_cross(hub: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A key that the hub does not know gets no link; a hub's address that is none is refused in words."""
    stranger = tmp_path / "stranger"
    command = ["admin", "users", "--folder", str(stranger), "--model", MODEL]
    assert cli.main([*command, "--hub", "hub.example", "server:s9"]) == 2
    assert "must be tls://HOST:PORT" in capsys.readouterr().err
    assert cli.main([*command, "--hub", "tls://hub.example:7422", "server:s9", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["made"] == ["server.s9.nk"]
    text = (stranger / "users.conf").read_text()
    assert "accounts" in text and "jetstream" not in text and "exports" not in text
    assert (stranger / "server.s9.nk").read_text() in text and (stranger / "users.conf").stat().st_mode & 0o777 == 0o600

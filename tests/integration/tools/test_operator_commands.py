"""status and drafts against a real broker, a controller that leads, a server with a modelled engine, and two drafts."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.loop.fleet import MODEL, POLICY, TOPOLOGY, modelled_engine
from tests.nats_fixture import NatsServer
from tests.trainer_samples import SPEC
from tests.unit.trainer.test_publish import SCORES, make_round
from tide_daemon.bus.connection import ConnectSettings
from tide_daemon.bus.jetstream import JetStreamBus
from tide_daemon.cli import main
from tide_daemon.draft import checkpoint
from tide_daemon.exit_codes import ExitCode
from tide_daemon.roles.controller import ControllerRole
from tide_daemon.roles.draft_fetch import DraftFetcher
from tide_daemon.roles.draft_publish import Publisher
from tide_daemon.roles.server import ServerRole, ServerSettings
from tide_daemon.wire.records import NO_DRAFT


class Site:
    """The fleet, and the command line of its operator."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.engine = modelled_engine()

    async def run(self, *words: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "tide_daemon", *words, "--url", self._url, "--model", MODEL]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, output.decode()

    async def json(self, *words: str) -> tuple[int, object]:
        code, output = await self.run(*words, "--json")
        return code, json.loads(output)

    async def runs(self, version: int) -> None:
        async with asyncio.timeout(20):
            while (await self.engine.stats()).draft.version != version:  # noqa: ASYNC110  # another role's doing
                await asyncio.sleep(0.05)


@pytest.fixture
async def site(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Site]:
    site = Site(nats_server.url)
    settings = ConnectSettings((nats_server.url,), "test")
    async with contextlib.AsyncExitStack() as stack:
        buses = [await JetStreamBus.connect(settings, TOPOLOGY) for _ in range(3)]
        for bus in buses:
            stack.push_async_callback(bus.close)
        await buses[0].ensure()
        publisher = Publisher(buses[0], SPEC, "t1", 8)
        for number in (1, 2):
            await publisher.publish(make_round(tmp_path / "state", number), SCORES, 3, None, NO_DRAFT)
        fetcher = DraftFetcher(buses[1], tmp_path / "drafts")
        server = ServerRole(buses[1], site.engine, fetcher.fetch, ServerSettings("s1", report_interval_s=0.2))
        controller = ControllerRole(buses[2], POLICY, MODEL, "c1", lease_ttl_s=2, tick_s=0.1)
        stop = asyncio.Event()
        tasks = [asyncio.create_task(role.run(stop)) for role in (server, controller)]
        yield site
        stop.set()
        await asyncio.gather(*tasks)


async def test_drafts_are_pinned_rolled_back_and_forgotten(site: Site, tmp_path: Path) -> None:
    """Each by the controller: it answers, the engine follows, the journal has who and why."""
    code, rows = await site.json("drafts")
    assert code == ExitCode.OK and isinstance(rows, list)
    assert [(row["version"], row["base_version"]) for row in rows] == [(1, None), (2, None)]
    code, answer = await site.json("drafts", "pin", "1", "--reason", "known to be good")
    assert code == ExitCode.OK and isinstance(answer, dict) and answer["granted"] and answer["controller"] == "c1"
    await site.runs(1)
    assert (await site.run("drafts", "pin", "2"))[0] == ExitCode.OK
    await site.runs(2)
    code, text = await site.run("drafts", "roll-back")
    assert code == ExitCode.OK and "from version 2 back to version 1" in text
    await site.runs(1)
    code, text = await site.run("drafts", "roll-back")
    assert code == ExitCode.FAILED and "no other draft" in text
    code, text = await site.run("drafts", "forget", "1")
    assert code == ExitCode.FAILED and "version 1 is in use: it is served" in text
    code, text = await site.run("drafts", "forget", "2")
    assert code == ExitCode.OK and "messages deleted" in text
    assert (await site.run("drafts", "forget", "2"))[0] == ExitCode.USAGE
    code, text = await site.run("drafts")
    assert [line.split()[:2] for line in text.splitlines()[1:]] == [["1", "pinned"]]
    assert (await site.run("drafts", "unpin"))[0] == ExitCode.OK
    code, text = await site.run("drafts", "export", "1", str(tmp_path / "out"))
    assert code == ExitCode.OK and checkpoint.load(tmp_path / "out").config is not None
    _, text = await site.run("why", "--last", "50")
    assert "asked to pin version 1 (known to be good)" in text and "Pin, asked by" in text


async def test_status_shows_the_fleet_and_what_is_wrong(site: Site, nats_server: NatsServer) -> None:
    """All is well: exit code 0. The engine goes down: 1, with its name."""
    await site.run("drafts", "pin", "1")
    await site.runs(1)
    await asyncio.sleep(0.5)
    code, shown = await site.json("status")
    assert isinstance(shown, dict)
    assert code == ExitCode.OK, shown["problems"]
    assert (shown["leader"], shown["serving_version"], shown["pinned"]) == ("c1", 1, True)
    (row,) = shown["servers"]
    assert (row["node"], row["engine"], row["version"], row["desired_version"]) == ("s1", "ready", 1, 1)
    assert row["tokens_per_s"] > 0 and row["heard_s"] < 5
    assert row["plain_tokens_per_s"] > 0 and row["of_plain"] > 0.9
    code, text = await site.run("status")
    assert "version 1 is served" in text and "pinned" in text and "led by c1" in text
    assert text.splitlines()[2].split()[:4] == ["SERVER", "ENGINE", "RUNS", "ASKED"]
    assert text.splitlines()[3].split()[:4] == ["s1", "ready", "1", "1"]
    assert "OF PLAIN" in text.splitlines()[2]


async def test_nobody_leads(nats_server: NatsServer, capsys: pytest.CaptureFixture[str]) -> None:
    """A request is not lost in silence, and status says what to look at."""
    bus = await JetStreamBus.connect(ConnectSettings((nats_server.url,), "test"), TOPOLOGY)
    await bus.ensure()
    await bus.close()
    words = ["--url", nats_server.url, "--model", MODEL]
    assert await asyncio.to_thread(main, ["status", *words]) == ExitCode.FAILED
    assert "no controller leads" in capsys.readouterr().out
    from tide_daemon.tools import operator_request

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(operator_request.ask, "__defaults__", (None, "", 0.5))
        assert await asyncio.to_thread(main, ["drafts", "unpin", *words]) == ExitCode.FAILED
    assert "no controller answered within 0.5 s" in capsys.readouterr().err

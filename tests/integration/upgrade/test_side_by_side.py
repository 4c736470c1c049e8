"""Two checkouts over one broker: an older controller with newer nodes, newer ones with an older node, state taken over.

The older one is a fixed commit of this repository's history, unpacked beside this one and run by the same Python.
Daemons are real processes; the engine is the modelled one, so drafts learn nothing and are served because an operator
pins them.
"""

import asyncio
import os
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from tests.nats_fixture import NatsServer
from tests.trainer_samples import write_target
from tide_daemon.bus.connection import ConnectSettings
from tide_daemon.bus.jetstream import JetStreamBus
from tide_daemon.bus.topology import TopologyLimits, build_topology
from tide_daemon.errors import BusUnavailableError
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.records import DesiredServer, DraftManifest, NodeReport, Record, TrainerReport

ROOT = Path(__file__).parents[3]
PREVIOUS = "267da241d0f6"
MODEL = "tiny"
LIMIT_S = 120.0
T = TypeVar("T")
SETTINGS = {
    "server": {
        "server.mode": "modelled", "server.report_interval_s": "0.2", "draft.aux_layer_ids": "0,1,2",
        "draft.vocab_size": "96",
    },
    "trainer": {
        "draft.vocab_size": "96", "trainer.round_min_tokens": "100", "trainer.round_max_tokens": "400",
        "trainer.report_interval_s": "0.2", "trainer.nice": "0",
    },
    "controller": {
        "controller.lease_ttl_s": "2", "controller.tick_s": "0.2", "controller.train_first_tokens": "200",
        "controller.train_min_tokens": "200", "controller.train_shift_tokens": "200",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The older checkout."""
    folder = tmp_path_factory.mktemp("previous")
    archive = folder.with_suffix(".tar")
    done = subprocess.run(
        ["git", "-C", str(ROOT), "archive", "-o", str(archive), PREVIOUS, "tide_daemon"],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        reason = done.stderr.decode().strip()
        pytest.skip(f"NO UPGRADE WAS TESTED: commit {PREVIOUS} is not here, fetch the whole history ({reason})")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return folder


class Site:
    """One broker and daemons of either checkout on it."""

    def __init__(self, bus: JetStreamBus, url: str, folder: Path, previous: Path) -> None:
        self.bus = bus
        self._url = url
        self._folder = folder
        self._checkouts = {"old": previous, "new": ROOT}
        self._target = write_target(folder / "target")
        (self._target / "tokenizer.json").write_text("{}")
        self._running: dict[str, asyncio.subprocess.Process] = {}

    async def run(self, role: str, which: str) -> None:
        """Start a role, in place of the one that runs, on the same state."""
        await self.stop(role)
        settings = SETTINGS[role] | {
            "bus.url": self._url, "node.model": MODEL, "node.name": f"{role}-1", "status.enabled": "false",
            "node.state_dir": str(self._folder / role),
        }  # fmt: skip
        if role != "controller":
            settings["server.model_path" if role == "server" else "trainer.target_path"] = str(self._target)
        words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        checkout = self._checkouts[which]
        with (self._folder / f"{role}.log").open("ab") as log:
            self._running[role] = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tide_daemon", "--role", role, *words,
                cwd=checkout, env={**os.environ, "PYTHONPATH": str(checkout)}, stdout=log, stderr=log,
            )  # fmt: skip

    async def stop(self, role: str) -> None:
        if role in self._running:
            process = self._running.pop(role)
            process.terminate()
            await process.wait()

    async def close(self) -> None:
        for process in self._running.values():
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def operator(self, *words: str) -> str:
        """A tool of today's."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tide_daemon", *words, "--url", self._url, "--model", MODEL,
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode() + self.logs()
        return output.decode()

    async def newest(self, subject: str) -> Record | None:
        try:
            message = await self.bus.last(subject)
        except BusUnavailableError:  # no daemon has made the streams yet
            return None
        return None if message is None else envelope.decode(message.data)

    async def server(self) -> NodeReport | None:
        report = await self.newest(subjects.report(MODEL, "server-1", "server"))
        return report if isinstance(report, NodeReport) else None

    async def trainer(self) -> TrainerReport | None:
        report = await self.newest(subjects.report(MODEL, "trainer-1", "trainer"))
        return report if isinstance(report, TrainerReport) else None

    async def desired(self) -> DesiredServer | None:
        desired = await self.newest(subjects.control_server(MODEL, "server-1"))
        return desired if isinstance(desired, DesiredServer) else None

    async def until(self, what: str, probe: Callable[[], Awaitable[T | None]]) -> T:
        try:
            async with asyncio.timeout(LIMIT_S):
                while True:
                    found = await probe()
                    if found is not None:
                        return found
                    ended = [role for role, process in self._running.items() if process.returncode is not None]
                    assert not ended, f"{ended} ended by themselves\n{self.logs()}"
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"{what}: not within {LIMIT_S} s\n{self.logs()}") from None

    async def manifest(self, version: int) -> DraftManifest:
        async def found() -> DraftManifest | None:
            record = await self.newest(subjects.draft_manifest(MODEL, version))
            return record if isinstance(record, DraftManifest) else None

        return await self.until(f"version {version} is published", found)

    async def serves(self, version: int, digest: str) -> None:
        """Pinned by an operator, the version is asked for, fetched, swapped in, read back and reported."""
        await self.operator("drafts", "pin", str(version))

        async def runs() -> bool | None:
            report, desired = await self.server(), await self.desired()
            if report is None or desired is None or report.applied_generation != desired.generation:
                return None
            return (report.running_version, report.running_digest) == (version, digest) or None

        await self.until(f"version {version} is served", runs)

    async def learns_from_new_samples(self) -> None:
        """What the server sends from now on reaches the trainer's store, and nothing is refused."""
        before = await self.until("the trainer reports", self.trainer)

        async def grown() -> bool | None:
            report = await self.trainer()
            return (report is not None and report.at > before.at and report.num_requests > before.num_requests) or None

        await self.until("new samples are stored", grown)
        after = await self.trainer()
        assert after is not None and not after.refused

    async def is_led_anew(self) -> None:
        """The new leader has another draft trained and served: desired state carries its token, and all obey."""
        before = await self.until("somebody leads", self.desired)
        await self.operator("drafts", "unpin")
        second = await self.manifest(2)
        await self.serves(2, second.content_digest)
        desired = await self.desired()
        assert desired is not None and desired.fencing_token > before.fencing_token

    def logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in self._folder.glob("*.log"))


@pytest.fixture
async def site(nats_server: NatsServer, tmp_path: Path, previous: Path) -> AsyncIterator[Site]:
    bus = await JetStreamBus.connect(ConnectSettings((nats_server.url,), "test"), build_topology(TopologyLimits()))
    site = Site(bus, nats_server.url, tmp_path, previous)
    yield site
    await site.close()
    await bus.close()


async def test_the_two_are_what_they_seem(previous: Path) -> None:
    """Each process imports its own checkout, and the older one knows less."""
    program = "import tide_daemon.wire.kinds as k; print(k.__file__, max(k.KIND_BY_CODE))"
    found = []
    for checkout in (previous, ROOT):
        environment = {**os.environ, "PYTHONPATH": str(checkout)}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, cwd=checkout, env=environment, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        path, newest = output.decode().split()
        assert Path(path).is_relative_to(checkout)
        found.append(int(newest))
    assert found[0] < found[1]


async def test_an_older_server_under_newer_trainers_and_controllers(site: Site) -> None:
    """The documented order: what the older trainer and leader left behind is taken over and goes on."""
    await site.run("server", "old")
    await site.run("controller", "old")
    await site.run("trainer", "old")
    first = await site.manifest(1)
    await site.serves(1, first.content_digest)
    await site.run("trainer", "new")
    await site.learns_from_new_samples()
    report = await site.trainer()
    assert report is not None and report.round >= 1, "it goes on where the older one was"
    await site.run("controller", "new")
    await site.is_led_anew()


@pytest.mark.slow
async def test_a_newer_server_under_older_trainers_and_controllers(site: Site) -> None:
    """The other order: new fields and streams do no harm; then the trainer is upgraded last."""
    await site.run("server", "new")
    await site.run("controller", "old")
    await site.run("trainer", "old")
    first = await site.manifest(1)
    await site.serves(1, first.content_digest)
    await site.run("controller", "new")
    await site.is_led_anew()
    await site.learns_from_new_samples()
    told = await site.operator("samples", "list")
    assert told == "nothing is to be forgotten\n"

"""Least privilege: with the generated users the whole loop runs, and each role is denied everything else."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.loop.fleet import TOPOLOGY, Fleet
from tests.integration.loop.test_loop import confirmed, speculates
from tests.nats_deployment import MODEL, USERS, Deployment
from tide_daemon import cli
from tide_daemon.bus.connection import Connection, ConnectSettings
from tide_daemon.bus.jetstream import JetStreamBus
from tide_daemon.bus.permissions import permissions
from tide_daemon.bus.topology import TopologyLimits, build_topology, covers
from tide_daemon.bus.users import DOMAIN, local
from tide_daemon.roles.fleet_watch import FleetWatch
from tide_daemon.wire import subjects

REQUEST = "ab" * 16
VERSION = f"tide.v1.draft.{MODEL}.00000001"
MAY_WRITE = {
    "server:s1": {subjects.hidden(MODEL, "s1"), subjects.report(MODEL, "s1", "server"), "target"},
    "trainer:t1": {subjects.report(MODEL, "t1", "trainer"), "draft", subjects.forgotten(MODEL, REQUEST, "t1")},
    "controller:c1": {"control", "journal", "lease"},
    "operator:o1": {"operator", subjects.forget(MODEL, REQUEST)},
    "admin:a1": set(),
}
"""Stated by hand, so that a grant too many in bus/permissions.py fails here. A word stands for its own model's kind."""

WRITES = {
    "hidden": [subjects.hidden(model, node) for model in (MODEL, "other") for node in ("s1", "s2")],
    "report": [
        subjects.report(model, node, role)
        for model in (MODEL, "other")
        for node, role in itertools.product(("s1", "t1", "c1"), ("server", "trainer", "controller"))
    ],
    "draft": [f"{VERSION}.claim", f"{VERSION}.00000", f"{VERSION}.manifest"],
    "target": [subjects.target_rows(MODEL, "lm_head", 0)],
    "control": [subjects.control_server(MODEL, "s1"), subjects.control_trainer(MODEL, "t1")],
    "journal": [subjects.journal(MODEL)],
    "lease": [f"$KV.TIDE_LEASE.controller-{MODEL}"],
    "operator": [subjects.operator_request(MODEL, REQUEST)],
    "forget": [
        subjects.forget(MODEL, REQUEST), subjects.forgotten(MODEL, REQUEST, "t1"),
        subjects.forgotten(MODEL, REQUEST, "t2"), subjects.forget("other", REQUEST),
    ],
    "foreign": [
        "tide.v1.draft.other.00000001.manifest", "tide.v1.target.other.lm_head.00000000",
        "tide.v1.control.other.server.s1", "tide.v1.journal.other", f"tide.v1.operator.other.{REQUEST}",
        "$KV.TIDE_LEASE.controller-other", "tide.v2.control.x", "anything", "$SYS.REQ.SERVER.PING",
        "$JS.ACK.TIDE_HIDDEN.other.1.1.1.1.1", "$JS.API.ACCOUNT.PURGE.X", "$JS.API.META.LEADER.STEPDOWN",
    ],
}  # fmt: skip
MAY_READ = {
    "server:s1": {"TIDE_DRAFT", "TIDE_TARGET", "KV_TIDE_LEASE"},
    "trainer:t1": {"TIDE_DRAFT", "TIDE_TARGET", "TIDE_FORGET"},
    "controller:c1": {"TIDE_CONTROL", "TIDE_JOURNAL", "KV_TIDE_LEASE"},
    "operator:o1": {"TIDE_CONTROL", "TIDE_JOURNAL", "TIDE_REPORT", "TIDE_DRAFT", "KV_TIDE_LEASE"},
    "admin:a1": set(),
}
MAY_FOLLOW = {
    "server:s1": {subjects.control_server(MODEL, "s1"), subjects.all_forgets(MODEL)},
    "trainer:t1": {
        subjects.control_trainer(MODEL, "t1"), subjects.all_control(MODEL), subjects.all_manifests(MODEL),
        subjects.all_forgets(MODEL),
    },
    "controller:c1": {
        subjects.journal(MODEL), subjects.all_reports(MODEL, "server"), subjects.all_reports(MODEL, "trainer"),
        subjects.all_manifests(MODEL), subjects.all_operator_requests(MODEL),
    },
    "operator:o1": {
        subjects.all_control(MODEL), subjects.control_server(MODEL, "s1"), subjects.control_trainer(MODEL, "t1"),
        subjects.journal(MODEL), subjects.all_reports(MODEL), subjects.all_reports(MODEL, "server"),
        subjects.all_reports(MODEL, "trainer"), subjects.all_manifests(MODEL),
        subjects.all_forgets(MODEL), subjects.all_forgotten(MODEL),
    },
    "admin:a1": set(),
}  # fmt: skip
FOLLOWS = [
    subjects.all_hidden(MODEL), subjects.hidden(MODEL, "s1"), subjects.all_reports(MODEL),
    subjects.all_reports(MODEL, "server"), subjects.all_reports(MODEL, "trainer"), subjects.all_manifests(MODEL),
    subjects.all_claims(MODEL), subjects.all_of_draft(MODEL, 1), subjects.all_target_rows(MODEL),
    subjects.all_control(MODEL), subjects.control_server(MODEL, "s1"), subjects.control_server(MODEL, "s2"),
    subjects.control_trainer(MODEL, "t1"), subjects.journal(MODEL), subjects.journal("other"),
    subjects.all_operator_requests(MODEL), subjects.all_forgets(MODEL), subjects.all_forgotten(MODEL),
    subjects.all_forgotten(MODEL, "t1"), "tide.v1.control.>", "tide.v1.>", "tide.v1.hidden.>",
]  # fmt: skip
MAY_PURGE = {"server:s1": {"TIDE_TARGET"}, "trainer:t1": {"TIDE_DRAFT"}, "operator:o1": {"TIDE_DRAFT"}}
LISTENS = ["tide.v1.>", "tide.v1.hidden.>", "tide.v1.control.>", ">", "_INBOX.>", "$JS.EVENT.>", "$SYS.>", "$KV.>"]


def requests_of(user: str) -> tuple[list[str], set[str]]:
    """Every subject that is tried, and those that this user may publish on."""
    tried, allowed = [], set()
    for kind, names in WRITES.items():
        tried += names
        allowed |= {name for name in names if kind in MAY_WRITE[user] or name in MAY_WRITE[user]}
    newest = {
        "TIDE_HIDDEN": subjects.hidden(MODEL, "s1"), "TIDE_REPORT": subjects.report(MODEL, "s1", "server"),
        "TIDE_DRAFT": f"{VERSION}.manifest", "TIDE_TARGET": subjects.target_rows(MODEL, "norm", 0),
        "TIDE_CONTROL": subjects.control_server(MODEL, "s1"), "TIDE_JOURNAL": subjects.journal(MODEL),
        "TIDE_OPERATOR": subjects.operator_request(MODEL, REQUEST),
        "TIDE_FORGET": subjects.forgotten(MODEL, REQUEST, "t1"), "TIDE_DEAD": "$JS.EVENT.ADVISORY.X",
        "KV_TIDE_LEASE": f"$KV.TIDE_LEASE.controller-{MODEL}",
    }  # fmt: skip
    for stream, subject in newest.items():
        read = f"$JS.API.DIRECT.GET.{stream}.{subject}"
        tried.append(read)
        allowed |= {read} if stream in MAY_READ[user] else set()
        for verb in ("CREATE", "UPDATE", "DELETE", "PURGE", "INFO", "SNAPSHOT", "RESTORE", "MSG.GET", "MSG.DELETE"):
            tried.append(f"$JS.API.STREAM.{verb}.{stream}")
        tried += [f"$JS.API.DIRECT.GET.{stream}", f"$JS.API.CONSUMER.NAMES.{stream}", f"$JS.API.CONSUMER.LIST.{stream}"]
        tried += [f"$JS.API.CONSUMER.CREATE.{stream}", f"$JS.API.CONSUMER.CREATE.{stream}.x"]
        tried += [f"$JS.API.CONSUMER.DURABLE.CREATE.{stream}.trainers", f"$JS.API.CONSUMER.DELETE.{stream}.trainers"]
        allowed.add(f"$JS.API.STREAM.INFO.{stream}")
        if user == "admin:a1":
            allowed |= {f"$JS.API.STREAM.{verb}.{stream}" for verb in ("CREATE", "UPDATE")}
    allowed |= {f"$JS.API.STREAM.PURGE.{stream}" for stream in MAY_PURGE.get(user, ())}
    for filter_subject in FOLLOWS:
        kind = filter_subject.split(".")[2]
        stream = f"TIDE_{kind.upper()}" if kind != ">" else "TIDE_HIDDEN"
        follow = f"$JS.API.CONSUMER.CREATE.{stream}.tail-x.{filter_subject}"
        tried.append(follow)
        allowed |= {follow} if any(covers(wider, filter_subject) for wider in MAY_FOLLOW[user]) else set()
    tried += ["$JS.API.CONSUMER.MSG.NEXT.TIDE_HIDDEN.trainers", "$JS.ACK.TIDE_HIDDEN.trainers.1.1.1.1.1"]
    tried += [
        "$JS.API.CONSUMER.INFO.TIDE_HIDDEN.trainers",
        "$JS.API.STREAM.NAMES",
        "$JS.API.STREAM.LIST",
        "$JS.API.INFO",
    ]
    scans = [
        request
        for trainer in ("t1", "t2")
        for request in (
            f"$JS.API.CONSUMER.CREATE.TIDE_HIDDEN.forget-{trainer}.{subjects.all_hidden(MODEL)}",
            f"$JS.API.CONSUMER.MSG.NEXT.TIDE_HIDDEN.forget-{trainer}",
            f"$JS.API.CONSUMER.DELETE.TIDE_HIDDEN.forget-{trainer}",
        )
    ]
    tried += scans
    if user == "trainer:t1":
        # Erasing what is to be forgotten: only by a consumer of its own name, never the shared one.
        allowed |= {*scans[:3], "$JS.API.STREAM.MSG.DELETE.TIDE_HIDDEN"}
        allowed |= {"$JS.API.CONSUMER.MSG.NEXT.TIDE_HIDDEN.trainers", "$JS.ACK.TIDE_HIDDEN.trainers.1.1.1.1.1"}
    allowed.add("$JS.API.CONSUMER.INFO.TIDE_HIDDEN.trainers")
    if user == "admin:a1":
        allowed.add("$JS.API.CONSUMER.DURABLE.CREATE.TIDE_HIDDEN.trainers")
    if user == "operator:o1":
        allowed.add("$JS.API.DIRECT.GET.TIDE_JOURNAL")  # `why --since` looks for the place where a time begins
    # A reader is deleted by its random name on streams that may be followed, see permissions.py.
    for filter_subject in MAY_FOLLOW[user]:
        allowed.add(f"$JS.API.CONSUMER.DELETE.TIDE_{filter_subject.split('.')[2].upper()}.trainers")
    # The API of the user's own account, which holds no streams, is denied as well.
    return [*tried, *map(local, tried)], {*map(local, allowed)}


@pytest.mark.parametrize("user", USERS)
async def test_everything_else_is_denied(user: str, made: Deployment) -> None:
    """Every write, every JetStream request on every stream, every subscription: only what is stated is let through."""
    tried, allowed = requests_of(user)
    connection = await Connection.open(made.settings(user))
    denied: set[str] = set()
    try:
        for subject in tried:
            connection.watch_denied(subject, lambda _reason, subject=subject: denied.add(subject))
            await connection.client.publish(subject, b"{}", reply=f"{connection.settings.inbox_prefix}.none")
        await connection.client.flush(timeout=10)
        for listened in LISTENS:
            connection.watch_denied(listened, lambda _reason, listened=listened: denied.add(listened))
            await connection.client.subscribe(listened)
        await connection.client.flush(timeout=10)
        await asyncio.sleep(0.2)
    finally:
        await connection.close()
    assert denied == ({*tried} - allowed) | {*LISTENS}
    assert len(denied) > 100


async def test_no_answer_reaches_another(made: Deployment) -> None:
    """JetStream answers to any reply subject and delivers to any subject: not out of the asker's account.

    In one account for all, the first of these made a message of the server's own into another node's desired state.
    """
    victim = subjects.control_server(MODEL, "s2")
    server = await JetStreamBus.connect(made.settings("server:s1"), TOPOLOGY)
    trainer = await JetStreamBus.connect(made.settings("trainer:t1"), TOPOLOGY)
    controller = await JetStreamBus.connect(made.settings("controller:c1"), TOPOLOGY)
    try:
        forged = subjects.target_rows(MODEL, "norm", 0)
        await server.publish(forged, b"forged")
        api = f"$JS.{DOMAIN}.API"
        await server.connection.client.publish(f"{api}.DIRECT.GET.TIDE_TARGET.{forged}", b"", reply=victim)
        await server.connection.client.publish(f"{api}.STREAM.INFO.TIDE_TARGET", b"", reply=victim)
        await trainer.publish(subjects.draft_manifest(MODEL, 1), b"forged")
        manifests = subjects.all_manifests(MODEL)
        for name, config in (("pull", {}), ("push", {"deliver_subject": victim})):
            body = {"name": name, "ack_policy": "none", "filter_subject": manifests, **config}
            request = f"CONSUMER.CREATE.TIDE_DRAFT.{name}.{manifests}"
            await trainer.connection.api(request, {"stream_name": "TIDE_DRAFT", "config": body})
        await trainer.connection.client.publish(f"{api}.CONSUMER.MSG.NEXT.TIDE_DRAFT.pull", b"1", reply=victim)
        for bus in (server, trainer):
            await bus.connection.client.flush()
        await asyncio.sleep(1.0)
        assert await controller.last(victim) is None
        info = await controller.connection.api("STREAM.INFO.TIDE_CONTROL")
        assert info["state"]["last_seq"] == 0
    finally:
        for bus in (server, trainer, controller):
            await bus.close()


@pytest.mark.parametrize("user", USERS)
def test_the_server_was_told_no_more_than_the_topology_gives(user: str, made: Deployment) -> None:
    """Nothing but our streams and our model's subjects, and no wildcard over either."""
    role, _, name = user.partition(":")
    streams = {stream.name for stream in TOPOLOGY.streams}
    for subject in permissions((role,), name, MODEL, TOPOLOGY).publish:
        words = subject.split(".")
        if words[0] == "$JS":
            assert set(words) & streams and words[-1] in (">", "*", *words), subject
            assert not covers(subject, f"$JS.API.STREAM.DELETE.{words[4] if len(words) > 4 else ''}")
        else:
            assert MODEL in words or subject == f"$KV.TIDE_LEASE.controller-{MODEL}", subject
        if ">" in words:
            assert subject.startswith("$JS.ACK."), subject


class SecuredFleet(Fleet):
    """Server, trainer and controller, each as its own user over TLS, on streams that the admin made."""

    deployment: Deployment

    def settings(self, role: str) -> ConnectSettings:
        user = {"server": "server:s1", "trainer": "trainer:t1", "controller": "controller:c1"}[role]
        return self.deployment.settings(user)

    async def prepare(self, bus: JetStreamBus) -> None:
        await bus.verify()


@pytest.fixture
async def fleet(made: Deployment, tmp_path: Path) -> AsyncIterator[SecuredFleet]:
    fleet = SecuredFleet(made.urls, tmp_path / "fleet")
    fleet.deployment = made
    await fleet.start()
    yield fleet
    await fleet.close()


async def test_the_whole_loop_runs_with_these_rights(fleet: SecuredFleet) -> None:
    """From no draft to a served one: what is denied to a role is not missed by it."""
    await fleet.until(lambda: speculates(fleet), "a draft is served")
    await fleet.until(lambda: confirmed(fleet), "the canary has passed")
    await fleet.drain()
    log = fleet.deployment.log("nats-a")
    assert "Violation" not in log, [line for line in log.splitlines() if "Violation" in line][:10]


def test_an_operators_tools_need_no_more(made: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    """status, drafts and why read an empty broker, and the server had nothing to deny."""
    config = ["--config", str(made.config_file("operator:o1"))]
    capsys.readouterr()
    assert cli.main(["status", *config]) == 1
    assert "no controller leads" in capsys.readouterr().out
    assert cli.main(["drafts", *config]) == 0
    assert capsys.readouterr().out == "no draft is on the bus\n"
    assert cli.main(["why", "--node", "s1", *config]) == 1
    assert "Violation" not in made.log("nats-a")


@pytest.mark.parametrize("user", ["controller:c1", "operator:o1"])
async def test_a_fleet_is_watched_with_the_rights_that_are_there(made: Deployment, user: str) -> None:
    """A controller's page and `tide-daemon status` read journal, reports, drafts and depths, and are denied nothing."""
    bus = await JetStreamBus.connect(made.settings(user), build_topology(TopologyLimits()))
    try:
        watch = FleetWatch(bus, MODEL)
        await watch.read()
        status = watch.status()
        assert {row.name for row in status.streams} >= {"TIDE_HIDDEN", "TIDE_DEAD"}
        assert [problem.page for problem in status.problems] == ["TideNoLeader"]
    finally:
        await bus.close()

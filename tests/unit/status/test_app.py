"""The endpoint, without a daemon: what each path answers, who may ask, and that nothing leaks."""

import asyncio
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse, ClientSession, StreamReader
from aiohttp.test_utils import TestClient, TestServer

import tide_daemon.status
from tide_daemon.errors import ConfigError
from tide_daemon.status import live
from tide_daemon.status.access import SESSION_S, Token, make_session
from tide_daemon.status.app import StatusServer, StatusSettings, make_app
from tide_daemon.status.live import MAX_VIEWERS, Live
from tide_daemon.status.problems import problems_of

TOKEN = "0123456789abcdef"


class Snapshots:
    """A source with one server role; `is_ready` is the test's to set."""

    is_ready = True

    def snapshot(self) -> Mapping[str, object]:
        server = {
            "draft_version": 7, "rows_dropped": 3, "accept_length": 2.25, "collecting": True, "unknown": "x",
            "decode_tokens_per_s": 300.0, "plain_tokens_per_s": 200.0, "of_plain": 1.5,
        }  # fmt: skip
        trainer = {"store_bytes": 10, "loss": None, "refused": {"checksum": 2}}
        view = {"state": "running", "num_failures": 1, "last_error": ""}
        return {
            "daemon": {"node": 'n"1', "model": "m", "version": "0.1.0", "started_at": 5.0},
            "bus": {"connected": True, "error": "", "num_losses": 2},
            "roles": {"server": {**view, "snapshot": server}, "trainer": {**view, "snapshot": trainer}},
        }

    def health(self) -> Mapping[str, str]:
        return {"bus": "ok", "server.engine": "ok" if self.is_ready else "the engine is starting"}

    def ready(self) -> bool:
        return self.is_ready


async def client(source: Snapshots | None = None, token: Token | str = "") -> TestClient:
    return TestClient(TestServer(make_app(source or Snapshots(), token)))


async def test_ready_lists_each_dependency_either_way() -> None:
    """200 or 503 says one thing; the words say which."""
    source = Snapshots()
    async with await client(source) as http:
        response = await http.get("/readyz")
        assert (response.status, (await response.json())["ready"]) == (200, True)
        source.is_ready = False
        response = await http.get("/readyz")
        assert response.status == 503
        assert (await response.json())["dependencies"] == {"bus": "ok", "server.engine": "the engine is starting"}
        assert (await http.get("/healthz")).status == 200


async def test_status_is_the_snapshot() -> None:
    """With readiness and health beside it."""
    async with await client() as http:
        body = await (await http.get("/status")).json()
    assert body["roles"]["server"]["snapshot"]["draft_version"] == 7
    assert body["ready"] is True and body["health"]["bus"] == "ok"


async def test_metrics_come_from_the_snapshot() -> None:
    """Names with units, counters as counters, missing values left out, labels escaped."""
    async with await client() as http:
        response = await http.get("/metrics")
        text = await response.text()
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    for line in (
        'tide_draft_version{model="m",node="n\\"1"} 7.0',
        'tide_rows_dropped_total{model="m",node="n\\"1"} 3.0',
        'tide_accept_length{model="m",node="n\\"1"} 2.25',
        'tide_decode_tokens_per_second{model="m",node="n\\"1"} 300.0',
        'tide_plain_tokens_per_second{model="m",node="n\\"1"} 200.0',
        'tide_of_plain_ratio{model="m",node="n\\"1"} 1.5',
        'tide_collecting{model="m",node="n\\"1"} 1.0',
        'tide_store_bytes{model="m",node="n\\"1"} 10.0',
        'tide_refused_total{node="n\\"1",reason="checksum"} 2.0',
        'tide_role_failures_total{node="n\\"1",role="server"} 1.0',
        'tide_dependency_ok{dependency="server.engine"} 1.0',
        "tide_bus_connected 1.0",
        "tide_bus_losses_total 2.0",
    ):
        assert line in text.splitlines(), line
    assert "# TYPE tide_rows_dropped_total counter" in text
    assert "tide_training_loss" not in text and "unknown" not in text


async def test_the_page_needs_nothing_from_elsewhere() -> None:
    """Its files name no other host, and the policy header forbids any."""
    async with await client() as http:
        for path in ("/", "/login", "/page.css", "/page.js", "/charts.js"):
            response = await http.get(path)
            assert response.status == 200
            text = await response.text()
            assert "://" not in text.replace("http://www.w3.org/2000/svg", "")
            assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        missing = await http.get("/nowhere")
        assert missing.status == 404 and "default-src 'none'" in missing.headers["Content-Security-Policy"]


def test_no_script_or_style_stands_in_the_pages() -> None:
    """The policy header would refuse it."""
    for page in Path(tide_daemon.status.__path__[0]).glob("*.html"):
        assert " style=" not in page.read_text() and " onclick=" not in page.read_text()


async def test_a_token_is_asked_for_everything_that_tells_something() -> None:
    """Health and the page's own files stay open; a wrong token is no token."""
    async with await client(token=TOKEN) as http:
        for path in ("/status", "/metrics", "/readyz", "/events"):
            assert (await http.get(path)).status == 401
            assert (await http.get(path, headers={"Authorization": f"Bearer {TOKEN}x"})).status == 401
            assert (await http.get(path, headers={"Authorization": "Bearer \xe9"})).status == 401
            answer = await http.get(path, headers={"Authorization": f"Bearer {TOKEN}"})
            assert answer.status == 200
            answer.close()
        for path in ("/healthz", "/login", "/page.js"):
            assert (await http.get(path)).status == 200
        answer = await http.get("/", allow_redirects=False)
        assert (answer.status, answer.headers["Location"]) == (303, "login")


async def signed_in(http: TestClient, token: str = TOKEN) -> ClientResponse:
    return await http.post("/login", data={"token": token}, allow_redirects=False)


async def test_a_browser_signs_in_and_out() -> None:
    """The cookie stands for the token, does not hold it, and goes to no script and no other site."""
    async with await client(token=TOKEN) as http:
        wrong = await signed_in(http, TOKEN + "x")
        assert wrong.status == 401 and "That is not the token" in await wrong.text() and not wrong.cookies
        right = await signed_in(http)
        (cookie,) = right.cookies.values()
        assert right.status == 303 and TOKEN not in cookie.value
        assert cookie["httponly"] and cookie["samesite"] == "Strict" and int(cookie["max-age"]) > 0
        assert (await http.get("/status")).status == 200
        assert 'id="logout" hidden' not in await (await http.get("/")).text()
        out = await http.post("/logout", allow_redirects=False)
        assert (out.status, out.headers["Location"]) == (303, "login")
        assert (await http.get("/status")).status == 401


async def test_a_session_ends_with_its_time_and_with_the_token() -> None:
    """Neither an old one nor one of another token nor a forged one is let in."""
    token = Token(TOKEN)
    now = time.time()
    good, old = make_session(TOKEN, now), make_session(TOKEN, now - SESSION_S - 1)
    later = f"{int(now) + 10 * SESSION_S}.{good.partition('.')[2]}"
    async with await client(token=token) as http:
        name = f"tide_session_{http.port}"
        for value, status in ((good, 200), (old, 401), (later, 401), ("", 401), ("\u0664.x", 401), (good + "0", 401)):
            headers = {"Cookie": f"{name}={value}"}
            assert (await http.get("/status", headers=headers)).status == status, value
        token.value = "another-token-of-16"
        assert (await http.get("/status", headers={"Cookie": f"{name}={good}"})).status == 401


async def test_a_change_of_the_token_ends_what_was_seen_with_the_old_one() -> None:
    """An open stream too."""
    token, headers = Token(TOKEN), {"Authorization": f"Bearer {TOKEN}"}
    async with await client(token=token) as http, http.get("/events", headers=headers) as answer:
        await next_event(answer.content)
        token.value = "another-token-of-16"
        async with asyncio.timeout(10):
            await answer.content.read()


async def test_a_form_from_elsewhere_is_refused() -> None:
    """Another page cannot have a browser sign in or out."""
    async with await client(token=TOKEN) as http:
        for path in ("/login", "/logout"):
            headers = {"Origin": "http://evil.example"}
            answer = await http.post(path, data={"token": TOKEN}, headers=headers, allow_redirects=False)
            assert answer.status in (401, 403) and not answer.cookies
        large = await http.post("/login", data={"token": "x" * 5000}, allow_redirects=False)
        assert large.status == 413


async def next_event(lines: StreamReader) -> tuple[str, Any]:
    """(name, value) of the next event; the browser's retry time is passed over."""
    name = ""
    while True:
        line = (await lines.readline()).decode().rstrip("\n")
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            return name, json.loads(line[6:])


async def test_events_begin_with_the_history_and_go_on() -> None:
    """The history once, then a state at once and again; what is wrong comes with what to do."""
    source = Snapshots()
    async with await client(source) as http, http.get("/events") as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        name, history = await next_event(answer.content)
        assert name == "history" and isinstance(history, list)
        name, state = await next_event(answer.content)
        assert name == "state" and state["problems"] == [] and state["server"]["draft_version"] == 7
        assert "unknown" not in state["server"], "only what is named is sent"
        source.is_ready = False
        name, state = await next_event(answer.content)
        (problem,) = state["problems"]
        assert problem["what"] == "server.engine: the engine is starting" and problem["page"] == "TideNotReady"


async def test_there_is_room_for_so_many_viewers() -> None:
    """The next one is told; when one leaves there is room again."""
    async with await client() as http:
        viewers = [await http.get("/events") for _ in range(MAX_VIEWERS)]
        assert (await http.get("/events")).status == 503
        viewers.pop().close()
        async with asyncio.timeout(10):
            while (answer := await http.get("/events")).status == 503:  # noqa: ASYNC110  # the next write shows it
                await asyncio.sleep(0.1)
        answer.close()
        for viewer in viewers:
            viewer.close()


async def test_stopping_ends_the_streams() -> None:
    """A daemon that stops does not wait for those who look."""
    server = StatusServer(Snapshots(), StatusSettings(port=0))
    await server.start()
    async with ClientSession() as session, session.get(f"http://127.0.0.1:{server.port}/events") as answer:
        await next_event(answer.content)
        await server.stop()
        async with asyncio.timeout(5):
            await answer.content.read()


def test_beyond_loopback_there_is_no_endpoint_without_a_token() -> None:
    """Whatever the configuration's own check says."""
    for host in ("0.0.0.0", "::", "10.1.2.3", "example.org"):
        with pytest.raises(ConfigError, match=r"status\.token"):
            StatusServer(Snapshots(), StatusSettings(host=host))
        StatusServer(Snapshots(), StatusSettings(host=host, token=TOKEN))


def test_a_broker_that_is_away_is_one_problem() -> None:
    """Not one of each role."""
    health = {"bus": "away", "server.bus": "away", "controller.lease": "no answer", "trainer.store": "disk full"}
    assert [problem["what"] for problem in problems_of(health)] == ["bus: away", "trainer.store: disk full"]
    assert [p["page"] for p in problems_of({"bus": "ok", "controller.decide": "stuck for 90 s"})] == ["TideLoopStuck"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:80", 200),
        ("127.0.0.1", 200),
        ("[::1]:1", 200),
        ("evil.example", 403),
        ("127.evil.example", 403),
        ("localhost.evil.example", 403),
        ("", 403),
    ],
)
async def test_without_a_token_only_this_machine_may_be_named(host: str, status: int) -> None:
    """So that a web page elsewhere cannot read the status through a name that points here."""
    async with await client() as http:
        assert (await http.get("/status", headers={"Host": host})).status == status


async def test_only_reading_is_offered() -> None:
    """No path takes a POST but the form's."""
    async with await client() as http:
        for path in ("/", "/status", "/metrics", "/events"):
            assert (await http.post(path)).status == 405


async def test_a_free_port_is_told_and_a_taken_one_refused() -> None:
    """Port 0 becomes the real one; the error names the setting."""
    first = StatusServer(Snapshots(), StatusSettings(port=0))
    await first.start()
    try:
        assert first.port > 0
        with pytest.raises(ConfigError, match=r"status\.port: cannot listen on 127\.0\.0\.1"):
            await StatusServer(Snapshots(), StatusSettings(port=first.port)).start()
    finally:
        await first.stop()


async def test_the_history_goes_on_after_a_point_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One state that cannot be shown must not be the end of the charts."""
    monkeypatch.setattr(live, "POINT_INTERVAL_S", 0.01)
    source = Snapshots()
    history, snapshots, asked = Live(source), source.snapshot, list[int]()

    def failing_first() -> Mapping[str, object]:
        asked.append(1)
        if len(asked) == 1:
            raise KeyError("a bug")
        return snapshots()

    monkeypatch.setattr(source, "snapshot", failing_first)
    running = asyncio.create_task(history.run())
    await asyncio.sleep(0.3)
    assert not running.done() and history._points
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

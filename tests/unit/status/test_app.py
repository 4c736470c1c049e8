"""The endpoint, without a daemon: what each path answers, who may ask, and that nothing leaks."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer

import tide_daemon.status
from tide_daemon.errors import ConfigError
from tide_daemon.status.app import StatusServer, StatusSettings, make_app

TOKEN = "0123456789abcdef"


class Snapshots:
    """A source with one server role; `is_ready` is the test's to set."""

    is_ready = True

    def snapshot(self) -> Mapping[str, object]:
        server = {"draft_version": 7, "rows_dropped": 3, "accept_length": 2.25, "collecting": True, "unknown": "x"}
        trainer = {"store_bytes": 10, "loss": None, "refused": {"checksum": 2}}
        view = {"state": "running", "num_failures": 1, "last_error": ""}
        return {
            "daemon": {"node": 'n"1', "model": "m", "version": "0.1.0", "started_at": 5.0},
            "bus": {"connected": True, "error": ""},
            "roles": {"server": {**view, "snapshot": server}, "trainer": {**view, "snapshot": trainer}},
        }

    def health(self) -> Mapping[str, str]:
        return {"bus": "ok", "server.engine": "ok" if self.is_ready else "the engine is starting"}

    def ready(self) -> bool:
        return self.is_ready


async def client(source: Snapshots | None = None, token: str = "") -> TestClient:
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
        'tide_collecting{model="m",node="n\\"1"} 1.0',
        'tide_store_bytes{model="m",node="n\\"1"} 10.0',
        'tide_refused_total{node="n\\"1",reason="checksum"} 2.0',
        'tide_role_failures_total{node="n\\"1",role="server"} 1.0',
        'tide_dependency_ok{dependency="server.engine"} 1.0',
        "tide_bus_connected 1.0",
    ):
        assert line in text.splitlines(), line
    assert "# TYPE tide_rows_dropped_total counter" in text
    assert "tide_training_loss" not in text and "unknown" not in text


async def test_the_page_needs_nothing_from_elsewhere() -> None:
    """Its files name no other host, and the policy header forbids any."""
    async with await client() as http:
        for path in ("/", "/page.css", "/page.js"):
            response = await http.get(path)
            assert response.status == 200
            text = await response.text()
            assert "://" not in text.replace("http://www.w3.org/2000/svg", "")
            assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    page = Path(tide_daemon.status.__path__[0]) / "page.html"
    assert " style=" not in page.read_text() and "onclick" not in page.read_text()


async def test_a_token_is_asked_for_everything_that_tells_something() -> None:
    """Health and the page's own files stay open; a wrong token is no token."""
    async with await client(token=TOKEN) as http:
        for path in ("/status", "/metrics", "/readyz"):
            assert (await http.get(path)).status == 401
            assert (await http.get(path, headers={"Authorization": f"Bearer {TOKEN}x"})).status == 401
            assert (await http.get(path, headers={"Authorization": "Bearer \xe9"})).status == 401
            assert (await http.get(path, headers={"Authorization": f"Bearer {TOKEN}"})).status == 200
        for path in ("/healthz", "/", "/page.js"):
            assert (await http.get(path)).status == 200


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
    """No path takes a POST."""
    async with await client() as http:
        for path in ("/", "/status", "/metrics"):
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

"""A real Prometheus scrapes a real daemon: every alert and every query of the dashboard finds what it asks for.

All three roles run, with a modelled engine and a private broker.
"""

import contextlib
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.integration.prometheus.test_alerts import OPS, RULES, promtool
from tests.nats_deployment import free_ports
from tide_daemon.status.metrics import ROLE_METRICS

DASHBOARD = json.loads((OPS / "grafana/tide-daemon.json").read_text())
NOT_YET = {"tide_accept_length", "tide_refused_total", "tide_round_left_seconds"}
"""Exposed once there is something to say: a draft is used, a chunk was refused, a round runs."""
NOTHING_IS_GOOD = {"tide_dependency_ok == 0"}


class Site:
    """The daemon and the Prometheus that scrapes it."""

    def __init__(self, folder: Path) -> None:
        self.status_port, self.prometheus_port = free_ports(2)
        settings = {
            "node.state_dir": folder / "state", "node.name": "n1", "node.model": "m", "server.mode": "modelled",
            "status.port": self.status_port, "controller.tick_s": 0.5,
        }  # fmt: skip
        words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        command = [sys.executable, "-m", "tide_daemon", "--role", "all", *words]
        self.daemon = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        text = (OPS / "prometheus/prometheus.yml").read_text()
        config = folder / "prometheus.yml"
        config.write_text(text.replace("127.0.0.1:8790", f"127.0.0.1:{self.status_port}").replace("15s", "1s"))
        shutil.copy(RULES, folder)
        binary = shutil.which("prometheus")
        assert binary is not None
        self.prometheus = subprocess.Popen(
            [binary, f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}", "--log.level=error",
             f"--web.listen-address=127.0.0.1:{self.prometheus_port}"]
        )  # fmt: skip

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.status_port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    def api(self, path: str, **query: str) -> dict[str, object]:
        url = f"http://127.0.0.1:{self.prometheus_port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=5) as answer:
            found = json.loads(answer.read())
        assert found["status"] == "success", found
        return dict(found["data"])

    def wait(self) -> None:
        """Until two scrapes saw every role at work."""
        give_up_at = time.monotonic() + 60
        while time.monotonic() < give_up_at:
            with contextlib.suppress(urllib.error.URLError, OSError):
                seen = self.api(
                    "query", query="count_over_time(tide_store_requests[1m]) > 3 and tide_serving_version == 0"
                )
                if seen["result"]:
                    return
            time.sleep(0.5)
        raise AssertionError("Prometheus saw no working daemon within 60 s")

    def close(self) -> None:
        for process in (self.prometheus, self.daemon):
            process.terminate()
        for process in (self.prometheus, self.daemon):
            process.wait(30)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed (Debian: package prometheus)")
    site = Site(tmp_path_factory.mktemp("prometheus"))
    try:
        site.wait()
        yield site
    finally:
        site.close()


def dashboard_queries() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def names_in(text: str) -> set[str]:
    return set(re.findall(r"\btide_[a-z_]+\b", text))


def test_every_name_is_exposed(site: Site) -> None:
    """In alerts, dashboard and runbooks; what is not exposed yet is in the daemon's own table."""
    exposed = {line.split("{")[0].split(" ")[0] for line in site.metrics().splitlines() if not line.startswith("#")}
    table = {mapped.name for role in ROLE_METRICS.values() for mapped in role}
    assert NOT_YET - {"tide_refused_total"} <= table
    expressions = [rule["expr"] for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]]
    pages = " ".join(path.read_text() for path in (OPS / "runbooks").glob("*.md"))
    pages = pages.replace("grep tide_chunks", "")
    for text in (*expressions, *dashboard_queries(), pages):
        assert names_in(text) <= exposed | NOT_YET, names_in(text) - exposed - NOT_YET
    assert table <= exposed | NOT_YET, "a metric that nothing offers"


def test_names_follow_the_rules_of_prometheus(site: Site) -> None:
    """promtool's lint: base units, _total on counters, help on everything."""
    done = promtool("check", "metrics", text=site.metrics())
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_query_of_the_dashboard_finds_something(site: Site) -> None:
    """With the variables as Grafana fills them in for "All"."""
    for query in dashboard_queries():
        expression = query.replace("$model", ".*").replace("$node", ".*").replace("$__rate_interval", "30s")
        assert "$" not in expression, query
        found = site.api("query", query=expression)
        if names_in(query) & NOT_YET or query in NOTHING_IS_GOOD:
            continue
        assert found["result"], query


def test_the_variables_of_the_dashboard(site: Site) -> None:
    """Model and node can be chosen."""
    for variable, expected in (("model", "m"), ("node", "n1")):
        (query,) = (item["query"] for item in DASHBOARD["templating"]["list"] if item["name"] == variable)
        inner = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
        assert inner is not None and inner[2] == variable
        result = site.api("query", query=inner[1])["result"]
        assert isinstance(result, list) and {item["metric"][variable] for item in result} == {expected}


def test_the_rules_are_evaluated_and_quiet(site: Site) -> None:
    """No error in any of them, and a daemon that works fires none."""
    (group,) = site.api("rules")["groups"]  # type: ignore[misc]
    assert {rule["health"] for rule in group["rules"]} == {"ok"}
    assert [rule["name"] for rule in group["rules"] if rule["state"] == "firing"] == []


def test_labels_are_bounded(site: Site) -> None:
    """Only these label names, whatever happens in the fleet."""
    labels = set(re.findall(r"(\w+)=\"", site.metrics()))
    assert labels <= {"node", "model", "role", "dependency", "reason", "version"}

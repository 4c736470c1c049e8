"""Alert rules by promtool, and a runbook page for each."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

OPS = Path(__file__).parents[3] / "ops"
RULES = OPS / "prometheus/tide-alerts.yml"
TESTS = OPS / "prometheus/tide-alerts-test.yml"


def promtool(*words: str, text: str = "") -> "subprocess.CompletedProcess[str]":
    path = shutil.which("promtool")
    if path is None:
        pytest.skip("promtool is not installed (Debian: package prometheus)")
    return subprocess.run([path, *words], input=text, capture_output=True, text=True, timeout=60, check=False)


def alerts() -> dict[str, dict[str, object]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def test_rules_and_configuration_are_valid() -> None:
    """By Prometheus's own tool."""
    for words in (("check", "rules", str(RULES)), ("check", "config", str(OPS / "prometheus/prometheus.yml"))):
        done = promtool(*words)
        assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_fires_when_it_should_and_not_before() -> None:
    """promtool's unit tests, and one for every alert."""
    done = promtool("test", "rules", str(TESTS))
    assert done.returncode == 0, done.stdout + done.stderr
    cases = yaml.safe_load(TESTS.read_text())["tests"]
    tried = {(rule["alertname"], bool(rule["exp_alerts"])) for case in cases for rule in case["alert_rule_test"]}
    assert tried == {(name, fires) for name in alerts() for fires in (True, False)}


def test_a_wrong_rule_would_be_noticed(tmp_path: Path) -> None:
    """The unit tests fail when a threshold is another one."""
    shutil.copy(TESTS, tmp_path)
    broken = RULES.read_text().replace("tide_ready == 0", "tide_ready == 2")
    (tmp_path / RULES.name).write_text(broken)
    assert promtool("test", "rules", str(tmp_path / TESTS.name)).returncode != 0


def test_each_alert_has_its_page() -> None:
    """With what it costs, where to look and what to do; no page without an alert."""
    for name, rule in alerts().items():
        annotations = rule["annotations"]
        assert isinstance(annotations, dict) and annotations["runbook"] == f"ops/runbooks/{name}.md"
        page = (OPS / "runbooks" / f"{name}.md").read_text()
        assert page.startswith(f"# {name}\n")
        assert re.findall(r"^## (.+)$", page, re.M) == ["What it costs", "Look", "Do"]
        assert rule["labels"] in ({"severity": "critical"}, {"severity": "warning"})
    pages = {path.stem for path in (OPS / "runbooks").glob("Tide*.md")}
    assert pages == alerts().keys()

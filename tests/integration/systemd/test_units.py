"""The unit files, judged by systemd's own tools: valid, and no more exposed than stated here."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tide_daemon.config.daemon_sections import BusConfig, NodeConfig

UNITS = Path(__file__).parents[3] / "systemd"
ROLES = ("controller", "server", "trainer")
EXPOSURE = {"controller": 1.1, "server": 1.6, "trainer": 1.6}
"""Most that `systemd-analyze security` may say, of 10. What is left: the network, and devices where there are GPUs."""


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed (package systemd)")
    return path


def run(command: list[str], environment: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A file system with nothing but our units and a daemon to start."""
    units = tmp_path / "etc/systemd/system"
    units.mkdir(parents=True)
    for path in UNITS.glob("tide-daemon@*"):
        copy = shutil.copytree if path.is_dir() else shutil.copy
        copy(path, units / path.name)
    daemon = tmp_path / "tide-daemon"
    daemon.write_text("#!/bin/sh\n")
    daemon.chmod(0o755)
    unit = units / "tide-daemon@.service"
    unit.write_text(unit.read_text().replace("/opt/tide-daemon/bin/tide-daemon", str(daemon)))
    return tmp_path


@pytest.mark.parametrize("role", ROLES)
def test_units_are_valid(root: Path, role: str) -> None:
    """systemd-analyze verify has nothing to say, drop-ins included."""
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{root}/etc/systemd/system:"}
    done = run([tool("systemd-analyze"), "verify", "--man=no", f"tide-daemon@{role}.service"], environment)
    if "tide-daemon" not in done.stderr and done.returncode != 0:
        pytest.skip(f"systemd-analyze cannot verify here: {done.stderr.strip()[-200:]}")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("role", ROLES)
def test_exposure(root: Path, role: str) -> None:
    """At most what is stated."""
    done = run([tool("systemd-analyze"), f"--root={root}", "security", "--offline=true", f"tide-daemon@{role}.service"])
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    if found is None:
        pytest.skip(f"this systemd-analyze has no offline security: {done.stderr.strip()[-200:]}")
    assert float(found[1]) <= EXPOSURE[role], done.stdout


def test_user_and_folders(tmp_path: Path) -> None:
    """sysusers makes the user; tmpfiles closes the configuration to others."""
    (tmp_path / "etc").mkdir()
    done = run([tool("systemd-sysusers"), f"--root={tmp_path}", str(UNITS / "tide-daemon.sysusers.conf")])
    assert done.returncode == 0, done.stderr
    users = (tmp_path / "etc/passwd").read_text()
    assert re.search(r"^tide:.*:/var/lib/tide-daemon:\S*nologin$", users, re.M), users
    assert re.search(r"^render:.*tide$", (tmp_path / "etc/group").read_text(), re.M)
    (tmp_path / "etc/tide-daemon").mkdir(mode=0o777)
    key = tmp_path / "etc/tide-daemon/server.nk"
    key.write_text("seed")
    done = run([tool("systemd-tmpfiles"), f"--root={tmp_path}", "--create", str(UNITS / "tide-daemon.tmpfiles.conf")])
    if os.getuid() != 0:
        pytest.skip("only root may give files to another group")
    assert done.returncode == 0, done.stderr
    assert key.parent.stat().st_mode & 0o777 == 0o750
    assert key.stat().st_mode & 0o777 == 0o640
    group = re.search(r"^tide:x:(\d+):", (tmp_path / "etc/group").read_text(), re.M)
    assert group is not None and key.stat().st_gid == int(group[1])


def test_the_drain_fits_the_stop_timeout() -> None:
    """Before its first beat of a drain a daemon has the unit's time, which covers the default deadline."""
    stop_s = re.search(r"^TimeoutStopSec=(\d+)$", (UNITS / "tide-daemon@.service").read_text(), re.M)
    assert stop_s is not None and int(stop_s[1]) > NodeConfig().drain_deadline_s + 10


def seconds(name: str) -> int:
    found = re.search(rf"^{name}=(\d+)$", (UNITS / "tide-daemon@.service").read_text(), re.M)
    assert found is not None, name
    return int(found[1])


def test_a_broker_that_is_away_does_not_reach_the_start_limit() -> None:
    """Each try takes the connection's time and the pause; one that ends within two seconds is given up."""
    allowed_s = seconds("StartLimitIntervalSec") / seconds("StartLimitBurst")
    assert seconds("RestartSec") + 2.0 < allowed_s
    assert allowed_s < BusConfig().connect_timeout_s / 2


def test_what_an_orphaned_engine_is_known_by_stays() -> None:
    """Its record outlives the unit's end, and no unit of the same user removes its ring."""
    server = (UNITS / "tide-daemon@server.service.d/10-gpu.conf").read_text()
    assert re.search(r"^RuntimeDirectoryPreserve=yes$", server, re.M)
    files = (path for path in UNITS.rglob("*") if path.suffix in (".service", ".conf"))
    lines = [line for path in files for line in path.read_text().splitlines() if line.startswith("RemoveIPC=")]
    assert lines == ["RemoveIPC=false"]

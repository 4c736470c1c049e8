"""Wheel and sdist: built without a network, complete, and the wheel runs when it is installed."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import tide_daemon

ROOT = Path(__file__).parents[3]
BUILD = "from setuptools import build_meta; import sys; getattr(build_meta, sys.argv[1])(sys.argv[2])"


def run(command: list[str], folder: Path, **more: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | more
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=200, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def tracked(*paths: str) -> set[str]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: which files belong to the project cannot be told")
    return set(run(["git", "ls-files", *paths], ROOT).split("\n")) - {""}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracked files as they are now, somewhere else: building leaves folders behind."""
    pytest.importorskip("setuptools", "77", reason="needs setuptools 77 for the licence expression")
    folder = tmp_path_factory.mktemp("source")
    for name in tracked():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    run([sys.executable, "-c", BUILD, "build_sdist", str(out)], source)
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist, so that what it lacks shows."""
    folder, out = tmp_path_factory.mktemp("unpacked"), tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (root,) = folder.iterdir()
    run([sys.executable, "-c", BUILD, "build_wheel", str(out)], root)
    (path,) = out.iterdir()
    return path


def test_the_sdist_holds_the_repository(sdist: Path) -> None:
    """Everything but pictures and what only the repository's host reads."""
    assert sdist.name == f"tide_daemon-{tide_daemon.__version__}.tar.gz"
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    missing = {name for name in tracked() - names if not name.startswith(("ops/pictures/", ".git"))}
    assert missing == set()


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    """Pages, scenarios and stand-ins too; licence, entry points, units and configurations beside it; no tests."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = f"tide_daemon-{tide_daemon.__version__}.dist-info"
        metadata = archive.read(f"{info}/METADATA").decode()
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    assert tracked("tide_daemon") - names == set()
    assert f"{info}/licenses/LICENSE" in names
    assert "License-Expression: Apache-2.0" in metadata and "Requires-Python: >=3.11" in metadata
    assert set(re.findall(r"^Provides-Extra: (\S+)$", metadata, re.M)) >= {"server", "trainer", "sglang", "demo"}
    assert "tide-daemon = tide_daemon.cli:main" in entry_points
    assert "tide = tide_daemon.engine.sglang.plugin:register" in entry_points
    shared = {name.split("/share/")[1] for name in names if "/share/" in name}
    units = {name.removeprefix("systemd/") for name in tracked("systemd")}
    assert {f"tide-daemon/systemd/{name}" for name in units} <= shared
    for name in ("nats", "prometheus", "grafana", "runbooks"):
        assert {f"tide-daemon/{path.removeprefix('ops/')}" for path in tracked(f"ops/{name}")} <= shared
    assert not any(name.startswith(("tests/", "ops/", "schemas/")) for name in names)


def test_the_installed_wheel_runs(wheel: Path, tmp_path: Path) -> None:
    """From its own folder: version, a reference that is taken, and no torch for a controller."""
    target = tmp_path / "installed"
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", str(target)]
    run([*command, str(wheel)], tmp_path)
    environment = {"PYTHONPATH": str(target)}
    where = run([sys.executable, "-c", "import tide_daemon; print(tide_daemon.__file__)"], tmp_path, **environment)
    assert Path(where.strip()).is_relative_to(target)
    daemon = [sys.executable, "-m", "tide_daemon"]
    versions = json.loads(run([*daemon, "version", "--json"], tmp_path, **environment))
    assert versions["tide-daemon"] == tide_daemon.__version__
    file = tmp_path / "tide.toml"
    file.write_text(run([*daemon, "config", "--reference"], tmp_path, **environment))
    words = ["--role", "controller", "--config", str(file), "--set", "bus.url=tls://b:1", "--check"]
    assert "roles: controller" in run([*daemon, *words], tmp_path, **environment)


def test_licence_and_changelog() -> None:
    """The whole Apache text, and an entry for the version in the code."""
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License" in licence and "END OF TERMS AND CONDITIONS" in licence
    assert re.search(rf"^## {re.escape(tide_daemon.__version__)}$", (ROOT / "CHANGELOG.md").read_text(), re.M)

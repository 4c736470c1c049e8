"""The lock files pin what pyproject.toml asks for: one version of everything, and nothing that it forbids."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "ops/requirements"
LOCKED = ("torch.txt", "cpu.txt", "sglang.txt")
"""What ops/venv installs for the demonstration and the tests on a machine without a GPU."""


def pins(name: str) -> Iterator[tuple[str, Version]]:
    for line in (FOLDER / name).read_text().splitlines():
        if line and not line.startswith("#"):
            found = re.fullmatch(r"([A-Za-z0-9._-]+)==([^\s;]+)", line)
            assert found, f"{name}: {line!r} pins nothing"
            yield canonicalize_name(found[1]), Version(found[2])


def asked_for(*extras: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *(text for extra in extras for text in project["optional-dependencies"][extra])]
    return [Requirement(text) for text in texts]


def test_the_demonstration_and_the_tests_are_pinned() -> None:
    """Every direct dependency, at a version that pyproject.toml allows."""
    locked = dict(pin for name in LOCKED for pin in pins(name))
    wanted = [
        item
        for item in asked_for("server", "trainer", "sglang", "embedded", "demo", "test")
        if canonicalize_name(item.name) != "tide-daemon"
    ]
    assert len(wanted) > 20
    for item in wanted:
        version = locked.get(canonicalize_name(item.name))
        assert version is not None, f"{item.name} is in no lock file"
        assert item.specifier.contains(version, prereleases=True), f"{item} is locked at {version}"


@pytest.mark.parametrize("name", [*LOCKED, "audit.txt"])
def test_nothing_is_pinned_twice(name: str) -> None:
    """And every line is a pin."""
    names = [pinned for pinned, _ in pins(name)]
    assert names and len(names) == len(set(names))


def test_the_audit_looks_at_every_lock_file() -> None:
    """A new one is not forgotten."""
    line = next(line for line in (ROOT / "ops/audit").read_text().splitlines() if line.startswith("for name in "))
    named = line.removeprefix("for name in ").removesuffix("; do").split()
    assert sorted(f"{name}.txt" for name in named) == sorted(path.name for path in FOLDER.glob("*.txt"))

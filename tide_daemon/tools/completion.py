"""`tide-daemon completion`: prints a script that completes words in a shell.

    tide-daemon completion bash > /etc/bash_completion.d/tide-daemon
    tide-daemon completion zsh > /usr/share/zsh/site-functions/_tide-daemon
    source <(tide-daemon completion bash)

Make it anew after an upgrade.
"""

import argparse

from tide_daemon.errors import TideError
from tide_daemon.exit_codes import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which shell."""
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))


def run(arguments: argparse.Namespace) -> int:
    """Print the script; returns the exit code."""
    try:
        import shtab
    except ImportError as error:
        raise TideError("shell completion needs the package shtab: pip install shtab") from error
    print(shtab.complete(arguments.whole_parser(), arguments.shell))
    return ExitCode.OK

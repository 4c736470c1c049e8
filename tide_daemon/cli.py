"""The command line. `tide-daemon --role ROLES` runs a daemon; a first word names a subcommand.

Nothing heavy is imported before it is known to be needed: a subcommand's module when its name was
given, a role's when it is started.
"""

import argparse
import asyncio
import faulthandler
import importlib
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

import tide_daemon
from tide_daemon import config, log
from tide_daemon.allocator import give_memory_back
from tide_daemon.config import show
from tide_daemon.config.load import Resolved
from tide_daemon.config.sources import did_you_mean
from tide_daemon.errors import ConfigError, TideError
from tide_daemon.exit_codes import MEANINGS, ExitCode
from tide_daemon.notify import Notifier

SUBCOMMANDS: dict[str, tuple[str, str]] = {
    "admin": ("tide_daemon.tools.admin", "set up the broker: streams and consumers, users and what they may do"),
    "completion": ("tide_daemon.tools.completion", "print a script that completes words in bash, zsh or tcsh"),
    "config": ("tide_daemon.tools.config_reference", "print a complete commented configuration file"),
    "doctor": ("tide_daemon.tools.doctor", "look at a node before it joins, and say what to change"),
    "drafts": ("tide_daemon.tools.drafts", "list, pin, export, roll back and forget drafts"),
    "export": ("tide_daemon.tools.export", "write a draft from the bus as a checkpoint that SGLang loads"),
    "peek": ("tide_daemon.tools.peek", "show messages of the bus in plain words, consuming nothing"),
    "plan": ("tide_daemon.tools.plan", "sizes, break-even points, and which devices should serve and train"),
    "replay": ("tide_daemon.tools.replay", "feed a journal through the policy and report the first difference"),
    "samples": ("tide_daemon.tools.samples", "have the samples of one request forgotten, everywhere"),
    "sglang": ("tide_daemon.tools.start_sglang", "start SGLang with the plug-in yourself, for server.mode = attach"),
    "simulate": ("tide_daemon.tools.simulate", "try the policy on a modelled fleet, from a scenario file"),
    "status": ("tide_daemon.tools.status", "show the fleet as a table: nodes, trainers, what is served, what is wrong"),
    "version": ("tide_daemon.tools.version", "print the versions of this package and what it runs on"),
    "why": (
        "tide_daemon.tools.why",
        "say in plain words why a node speculates or not, why a draft was deployed or not",
    ),
}
"""Name -> (module with `add_arguments(parser)` and `run(arguments) -> int`, one line of help)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `tide-daemon`; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words and not words[0].startswith("-"):
            if arguments is None:  # a process of its own; who calls us has set up logging
                log.configure_tool()
            return _run_subcommand(words[0], words[1:])
        return _run_daemon(words)
    except ConfigError as error:
        print(f"tide-daemon: {_one_or_many(str(error))}", file=sys.stderr)
        return ExitCode.USAGE
    except TideError as error:
        print(f"tide-daemon: {error}", file=sys.stderr)
        return ExitCode.FAILED
    except BrokenPipeError:  # `| head` has seen enough; keep Python from complaining at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    except KeyboardInterrupt:
        return ExitCode.INSISTED


def daemon_parser() -> argparse.ArgumentParser:
    """Arguments of a daemon run; the help text covers the subcommands too."""
    parser = argparse.ArgumentParser(
        prog="tide-daemon",
        description="Keeps the draft model of speculative decoding aligned with live traffic.",
        usage="tide-daemon --role ROLES [--config FILE] [--set SECTION.FIELD=VALUE ...] [--check]\n"
        "       tide-daemon SUBCOMMAND [--help]",
        epilog=_epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--role",
        metavar="ROLES",
        help="server, trainer, controller, several with commas, or all (with a private broker)",
    )
    parser.add_argument("--config", metavar="FILE", type=Path, help="TOML file; also by $TIDE_CONFIG")
    parser.add_argument(
        "--set", metavar="SECTION.FIELD=VALUE", action="append", default=[], help="override one setting; repeatable"
    )
    parser.add_argument(
        "--check", action="store_true", help="print the configuration in force and where each value came from, then end"
    )
    parser.add_argument("--version", action="version", version=f"tide-daemon {tide_daemon.__version__}")
    return parser


def _run_daemon(words: Sequence[str]) -> int:
    parser = daemon_parser()
    arguments = parser.parse_args(words)
    if arguments.role is None:
        parser.error("--role is required, unless a subcommand is named; see --help")
    path = config.chosen_file(arguments.config, os.environ)
    roles = config.parse_roles(arguments.role)
    notifier = Notifier.from_environment(os.environ)

    def load() -> Resolved:
        return config.load(roles, path, os.environ, arguments.set)

    resolved = load()
    if arguments.check:
        for warning in resolved.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        print(show.resolved(resolved), end="")
        return ExitCode.OK
    return _start(resolved, load, notifier)


def _start(resolved: Resolved, load: Callable[[], Resolved], notifier: Notifier) -> int:
    from tide_daemon.broker import open_bus
    from tide_daemon.daemon import Daemon
    from tide_daemon.roles.build import build_role, reconfigure

    faulthandler.enable()  # where every thread stood when the watchdog aborts us
    give_memory_back()
    settings = resolved.config
    log.configure(settings.log.level, settings.log.format)  # type: ignore[arg-type]  # the choices are checked
    log.bind(node=settings.node.name)
    for warning in resolved.warnings:
        structlog.get_logger().warning("setting_ignored", detail=warning)

    async def run() -> ExitCode:
        daemon = Daemon(resolved, open_bus, build_role, reload=load, reconfigure=reconfigure, notifier=notifier)
        return await daemon.run()

    return asyncio.run(run())


def _run_subcommand(name: str, words: Sequence[str]) -> int:
    if name not in SUBCOMMANDS:
        raise ConfigError(f"{name}: there is no such subcommand{did_you_mean(name, SUBCOMMANDS)} (see --help)")
    module = importlib.import_module(SUBCOMMANDS[name][0])
    parser = argparse.ArgumentParser(
        prog=f"tide-daemon {name}",
        description=_description(name, module.__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    parser.set_defaults(whole_parser=whole_parser)  # for `completion`, which may not know this module
    return int(module.run(parser.parse_args(words)))


def whole_parser() -> argparse.ArgumentParser:
    """A parser that knows every subcommand at once, for shell completion. It imports all of their modules."""
    parser = daemon_parser()
    subparsers = parser.add_subparsers(metavar="SUBCOMMAND")
    for name, (module_name, summary) in SUBCOMMANDS.items():
        importlib.import_module(module_name).add_arguments(subparsers.add_parser(name, help=summary))
    return parser


def _description(name: str, docstring: str) -> str:
    """A subcommand's help: its module's docstring without its own name, or the line of the list where it has none."""
    _, colon, text = docstring.partition(": ")
    return (text[:1].upper() + text[1:]).strip() if colon else SUBCOMMANDS[name][1]


def _epilog() -> str:
    subcommands = "\n".join(f"  {name:<10} {summary}" for name, (_, summary) in SUBCOMMANDS.items())
    codes = "\n".join(f"  {code.value:<4} {MEANINGS[code]}" for code in ExitCode)
    return textwrap.dedent("""\
        to begin:
          tide-daemon config --reference > tide.toml      every setting, commented
          tide-daemon --role all --set server.model_path=DIR
                                                          everything on this machine, with a private broker
          tide-daemon --role trainer --config tide.toml --check
          http://127.0.0.1:8790/                          the status page of a running daemon

        subcommands:
        {subcommands}

        signals:
          SIGTERM, SIGINT   stop: finish what was begun within node.drain_deadline_s; a second one insists
          SIGHUP            read the configuration again; what cannot change now is named and nothing is taken over

        exit codes:
        {codes}
        """).format(subcommands=subcommands, codes=codes)


def _one_or_many(message: str) -> str:
    lines = message.splitlines()
    if len(lines) == 1:
        return message
    return f"{len(lines)} problems:\n" + "\n".join(f"  {line}" for line in lines)

"""`tide-daemon sglang`: SGLang with the plug-in, where somebody else than the daemon looks after it.

    tide-daemon sglang --config tide.toml --exec -- --tp 4      becomes SGLang: for a container or a unit of your own
    tide-daemon sglang --config tide.toml -- --tp 4             prints environment and command instead

The configuration is the daemon's, with server.mode = "attach"; words behind -- are SGLang's own and follow
server.arguments. In the folder `engine` of node.run_dir it writes what SGLang reads at its start: settings of the
plug-in, a placeholder draft, the numbers of draft steps. The daemon runs beside it as the same user, and may come
and go: SGLang serves on. A printed command holds --api-key if you gave one.
"""

import argparse
import importlib.util
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tide_daemon import config as configuration
from tide_daemon.errors import ConfigError
from tide_daemon.exit_codes import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The daemon's configuration, and SGLang's further words."""
    parser.add_argument("--config", metavar="FILE", type=Path, help="TOML file; also by $TIDE_CONFIG")
    parser.add_argument(
        "--set", metavar="SECTION.FIELD=VALUE", action="append", default=[], help="override one setting"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--exec", action="store_true", help="become SGLang instead of printing how to start it")
    how.add_argument("--json", action="store_true", help="one line of JSON instead of text")
    parser.add_argument("arguments", nargs="*", metavar="-- ARGUMENT", help="further arguments of sglang.launch_server")


def run(arguments: argparse.Namespace) -> int:
    """Prepare, then print or become SGLang; returns the exit code.

    Raises:
        ConfigError: the configuration, the target or SGLang's arguments cannot work.
    """
    words, environment = prepared(arguments.config, arguments.set, arguments.arguments)
    if arguments.exec:
        sys.stdout.flush()
        os.execve(words[0], words, dict(environment))
    added = {name: value for name, value in sorted(environment.items()) if os.environ.get(name) != value}
    if arguments.json:
        print(json.dumps({"environment": added, "command": words}))
    else:
        for name, value in added.items():
            print(f"export {name}={shlex.quote(value)}")
        print(shlex.join(words))
    return ExitCode.OK


def prepared(path: Path | None, settings: Sequence[str], further: Sequence[str]) -> tuple[list[str], Mapping[str, str]]:
    """Write what SGLang reads at its start. Returns its command and complete environment."""
    from tide_daemon.engine.sglang import start
    from tide_daemon.engine.sglang.target import default_aux_layers_of
    from tide_daemon.roles.build import sglang_settings

    path = configuration.chosen_file(path, os.environ)
    config = configuration.load(("server",), path, os.environ, settings).config
    if config.server.mode != "attach":
        raise ConfigError(
            f'server.mode is "{config.server.mode}": then the daemon starts SGLang itself. Set it to "attach" to start '
            "SGLang yourself"
        )
    if importlib.util.find_spec("sglang") is None:
        raise ConfigError("SGLang is not installed beside tide-daemon: pip install 'tide-daemon[sglang]'")
    engine = sglang_settings(config)
    engine = replace(engine, attach=False, arguments=(*engine.arguments, *further))
    start.check_arguments(engine.arguments)
    start.check_dtype(engine.model_path, engine.arguments, engine.device)
    start.check_port(engine.host, engine.port)
    start.prepare(engine, engine.aux_layer_ids or default_aux_layers_of(engine.model_path))
    words, environment = start.command(engine)
    return [sys.executable, "-m", "sglang.launch_server", *words], environment

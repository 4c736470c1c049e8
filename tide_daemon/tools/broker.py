"""How a subcommand reaches the broker: `--url`, or the configuration's. Streams are neither made nor changed."""

import argparse
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tide_daemon import config
from tide_daemon.bus.port import Bus
from tide_daemon.config.sections import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the broker is."""
    parser.add_argument("--url", help="address of the broker; instead of the configuration's")
    parser.add_argument("--config", metavar="FILE", type=Path, help="TOML file; also by $TIDE_CONFIG")


def settings(arguments: argparse.Namespace) -> Config:
    """The configuration that the arguments name; a controller's, which needs fewer settings than any other role's."""
    path = arguments.config or (Path(os.environ["TIDE_CONFIG"]) if os.environ.get("TIDE_CONFIG") else None)
    overrides = [f"bus.url={arguments.url}"] if arguments.url else []
    return config.load(("controller",), path, os.environ, overrides).config


@asynccontextmanager
async def open_bus(arguments: argparse.Namespace) -> AsyncIterator[Bus]:
    """A connection that is closed at the end of the block.

    Raises:
        ConfigError: no address is given, or the file is wrong.
        BusError: the broker cannot be reached.
    """
    from tide_daemon.broker import connect_settings
    from tide_daemon.bus.jetstream import JetStreamBus
    from tide_daemon.bus.topology import TopologyLimits, build_topology

    found = settings(arguments)
    # The limits do not matter to a reader; only which stream holds a subject does.
    bus = await JetStreamBus.connect(connect_settings(found, found.bus.url), build_topology(TopologyLimits()))
    try:
        yield bus
    finally:
        await bus.close()

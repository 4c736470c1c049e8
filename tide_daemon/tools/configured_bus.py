"""The broker of --url or of the configuration, for tools that read it. Streams are neither made nor changed."""

import argparse
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tide_daemon.bus.port import Bus
from tide_daemon.config.load import Resolved


@dataclass(frozen=True, slots=True)
class OpenedBus:
    """A connection and the model whose subjects are meant."""

    bus: Bus
    model: str


OpenBus = Callable[[argparse.Namespace], AbstractAsyncContextManager[OpenedBus]]


def add_bus_arguments(parser: argparse.ArgumentParser, *, ask_model: bool = True, suppress: bool = False) -> None:
    """Where the broker is, and which model is meant.

    `suppress`: not given is not set, so that a command and its verbs may both take them.
    """
    default = argparse.SUPPRESS if suppress else None
    parser.add_argument("--url", default=default, help="address of the broker; instead of the configuration's")
    if ask_model:
        words = "short name of the target in subjects; instead of the configuration's"
        parser.add_argument("--model", default=default, help=words)
    else:
        parser.set_defaults(model=None)
    parser.add_argument("--config", metavar="FILE", type=Path, default=default, help="TOML file; also by $TIDE_CONFIG")


@asynccontextmanager
async def open_configured_bus(arguments: argparse.Namespace) -> AsyncIterator[OpenedBus]:
    """Connect as the arguments of add_bus_arguments say, and close.

    Raises:
        ConfigError: the configuration is unusable.
        BusError: the broker cannot be reached.
    """
    from tide_daemon.broker import connect_settings
    from tide_daemon.bus.jetstream import JetStreamBus
    from tide_daemon.bus.topology import TopologyLimits, build_topology

    settings = load_configuration(arguments).config
    # The limits do not matter to a reader; only which stream holds a subject does.
    bus = await JetStreamBus.connect(
        connect_settings(settings, settings.bus.url, ("operator",)), build_topology(TopologyLimits())
    )
    try:
        yield OpenedBus(bus, settings.node.model)
    finally:
        await bus.close()


def load_configuration(arguments: argparse.Namespace, *, needs_url: bool = True) -> Resolved:
    """The configuration that the arguments of add_bus_arguments name.

    Raises:
        ConfigError: it is unusable.
    """
    from tide_daemon import config

    url, model = getattr(arguments, "url", None), getattr(arguments, "model", None)
    path = config.chosen_file(getattr(arguments, "config", None), os.environ)
    overrides = [f"bus.url={url}"] if url else []
    if not needs_url and not url:
        overrides.append("bus.url=nats://localhost:4222")  # nobody is asked
    if model:
        overrides.append(f"node.model={model}")
    # A controller needs fewer settings than any other role, and a reader none of them.
    return config.load(("controller",), path, os.environ, overrides)

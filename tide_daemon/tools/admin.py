"""`tide-daemon admin`: what an operator does to the broker before any daemon starts, and after an upgrade.

    tide-daemon admin users --folder /etc/nats --model gpt-oss-120b server:gpu-1 trainer:t1 controller:c1 admin:me
    tide-daemon admin init --config tide.toml --dry-run      prints what differs, changes nothing; exit code 1 then
    tide-daemon admin init --config tide.toml                makes and migrates streams and consumers, idempotent

    tide-daemon admin users --folder /etc/nats --model gpt-oss-120b --hub tls://hub:7422 server:gpu-9   a second site

`users` writes a key for each user (once; it is kept) and users.conf, which the server includes. Give NAME as the
daemon's node.name. Copy each .nk file to its machine as bus.nkey_file; the server needs users.conf alone. At a second
site (--hub) users.conf holds the users' keys, with which that broker logs in at the main one, which must list the same
users: copy their .nk files to the folder first, and keep users.conf as secret as they are.
"""

import argparse
import asyncio
import json
import re
from pathlib import Path

from tide_daemon.bus.topology import TopologyLimits, build_topology
from tide_daemon.errors import ConfigError
from tide_daemon.exit_codes import ExitCode
from tide_daemon.tools.configured_bus import add_bus_arguments, load_configuration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Two subcommands of their own."""
    what = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    init = what.add_parser("init", help="make and migrate streams, consumers and the lease bucket")
    init.add_argument("--dry-run", action="store_true", help="print the differences and change nothing")
    init.add_argument("--json", action="store_true", help="one line of JSON instead of text")
    add_bus_arguments(init, ask_model=False)
    users = what.add_parser("users", help="make keys and the server's list of users with their permissions")
    users.add_argument("users", nargs="+", metavar="ROLE:NAME", help="ROLE+ROLE:NAME for a daemon with several roles")
    users.add_argument("--folder", type=Path, required=True, help="where users.conf and the .nk files go")
    users.add_argument(
        "--hub", metavar="URL", help="for the broker of a second site: tls://HOST:PORT of the main one's leaf nodes"
    )
    users.add_argument("--json", action="store_true", help="one line of JSON instead of text")
    add_bus_arguments(users)


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked; returns the exit code."""
    return _users(arguments) if arguments.what == "users" else asyncio.run(_init(arguments))


async def _init(arguments: argparse.Namespace) -> int:
    from tide_daemon.broker import connect_settings
    from tide_daemon.bus.jetstream import JetStreamBus
    from tide_daemon.config.carry import carry_over

    settings = load_configuration(arguments).config
    topology = build_topology(carry_over(TopologyLimits, settings.bus))
    bus = await JetStreamBus.connect(connect_settings(settings, settings.bus.url, ("admin",)), topology)
    try:
        changes = await bus.migrate(dry_run=arguments.dry_run)
    finally:
        await bus.close()
    if arguments.json:
        print(json.dumps({"dry_run": arguments.dry_run, "changes": changes}))
    else:
        prefix = "would " if arguments.dry_run else ""
        for change in changes:
            what, _, how = change.partition(": ")
            print(f"{what}: {prefix}{how}")
        if not changes:
            print(f"{len(topology.streams)} streams and {len(topology.consumers)} consumer are as they should be")
    return ExitCode.FAILED if arguments.dry_run and changes else ExitCode.OK


def _users(arguments: argparse.Namespace) -> int:
    from tide_daemon.bus.users import User, far_config, public_key, seed_of, server_config

    if arguments.hub is not None and re.fullmatch(r"(tls|nats-leaf)://[^\s,/@]+:\d+", arguments.hub) is None:
        raise ConfigError(f"--hub: must be tls://HOST:PORT, not {arguments.hub}")

    model = load_configuration(arguments, needs_url=False).config.node.model
    named = [User.parse(text) for text in arguments.users]
    seeds, made = [], []
    for user in named:
        seed, is_new = seed_of(arguments.folder, user)
        seeds.append((user, seed))
        made += [user.file_name] if is_new else []
    path = arguments.folder / "users.conf"
    topology = build_topology(TopologyLimits())
    if arguments.hub is None:
        path.write_text(server_config([(user, public_key(seed)) for user, seed in seeds], model, topology))
    else:
        path.touch(mode=0o600)
        path.chmod(0o600)  # it holds the seeds; one that was there may have been open to all
        path.write_text(far_config(seeds, model, topology, arguments.hub, arguments.folder.absolute()))
    if arguments.json:
        print(json.dumps({"users_conf": str(path), "keys": [user.file_name for user in named], "made": made}))
    else:
        for user in named:
            state = "made" if user.file_name in made else "kept"
            print(f"{'+'.join(user.roles)}:{user.name}: {arguments.folder / user.file_name} ({state})")
        print(f"{path}: {len(named)} users of model {model}; reload the server to have it take them over")
    return ExitCode.OK

"""Users of the broker: an nkey each, and the part of the server's configuration that says what each may do.

A seed is made once and never shown; the server's file holds public keys only, so it may lie anywhere. The one of a
second site's broker holds seeds, with which it logs in at the hub: nats-server takes them from no file of their own.
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tide_daemon.bus.permissions import ROLES, Permissions, permissions
from tide_daemon.bus.topology import Topology
from tide_daemon.errors import ConfigError
from tide_daemon.wire.kinds import TOKEN_PATTERN

STREAMS_ACCOUNT = "TIDE"
"""The account that holds the streams; nobody logs in to it."""


DOMAIN = "tide"
"""What users set as bus.domain to reach it."""


@dataclass(frozen=True, slots=True)
class User:
    """One user: `roles` on node `name`."""

    roles: tuple[str, ...]
    name: str

    @classmethod
    def parse(cls, text: str) -> "User":
        """ROLE:NAME, or ROLE+ROLE:NAME for a daemon with several.

        Raises:
            ConfigError: it is not of that form.
        """
        roles, colon, name = text.partition(":")
        named = tuple(role for role in ROLES if role in roles.split("+"))
        if not colon or len(named) != len(roles.split("+")) or not re.fullmatch(TOKEN_PATTERN, name):
            raise ConfigError(f"{text}: must be ROLE:NAME or ROLE+ROLE:NAME, with the roles {', '.join(ROLES)}")
        return cls(named, name)

    @property
    def file_name(self) -> str:
        """Name of its seed's file."""
        return f"{'-'.join(self.roles)}.{self.name}.nk"


def seed_of(folder: Path, user: User) -> tuple[bytes, bool]:
    """The user's seed, and whether it was made just now. It stays as it is once it is there.

    Raises:
        ConfigError: the file cannot be written or holds no seed.
    """
    import nkeys

    path = folder / user.file_name
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(seed)
            return bytes(seed), True
        return path.read_bytes().strip(), False
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


def public_key(seed: bytes) -> str:
    """What the server knows a user by.

    Raises:
        ConfigError: not a user's seed.
    """
    import nkeys

    try:
        return str(nkeys.from_seed(bytearray(seed)).public_key.decode())
    except (nkeys.NkeysError, ValueError) as error:
        raise ConfigError(f"a key file holds no nkey seed: {type(error).__name__}") from error


def server_config(users: Sequence[tuple[User, str]], model: str, topology: Topology) -> str:
    """Text for the server to include: an account for the streams, and one for each user with what it may ask for.

    One account would not do. JetStream answers to whatever reply subject a request names, and what it sends there
    is not held to the asker's permissions: a node could have a message of its own making delivered as another
    node's desired state. An answer to another account reaches that account only.
    """
    granted = [(user, key, permissions(user.roles, user.name, model, topology)) for user, key in users]
    asked = sorted({subject for _, _, allowed in granted for subject in allowed.publish})
    lines = [
        f"# Users of the model {model}, made by `tide-daemon admin users` from the topology. Do not edit it.",
        "accounts {",
        f"  {STREAMS_ACCOUNT} {{",
        "    jetstream: enabled",
        "    exports: [",
    ]
    for subject in asked:
        holders = [account_of(user) for user, _, allowed in granted if subject in allowed.publish]
        # A pull is answered by many messages, everything else by one.
        kind = ", response_type: Stream" if ".CONSUMER.MSG.NEXT." in subject else ""
        lines.append(f"      {{ service: {json.dumps(subject)}, accounts: {json.dumps(holders)}{kind} }}")
    lines += ["    ]", "  }"]
    for user, key, allowed in granted:
        lines += _account(user, key, allowed)
    return "\n".join([*lines, "}", ""])


def far_config(users: Sequence[tuple[User, bytes]], model: str, topology: Topology, hub: str, folder: Path) -> str:
    """SECRET text for the broker of a second site to include: its users' accounts, and a link to the hub for each.

    Each account crosses the link by itself, logged in at the hub by its user's own key, so that the hub holds it to
    that user's rights whatever this broker lets through. The accounts' names are those of the hub's.

    Args:
        users: with their seeds.
        hub: tls://host:port of the hub's leafnodes.
        folder: holds this broker's certificate, under tls/.
    """
    lines = [
        f"# Users of the model {model} at a second site, made by `tide-daemon admin users --hub`. Do not edit it.",
        "accounts {",
    ]
    for user, seed in users:
        allowed = permissions(user.roles, user.name, model, topology)
        lines += [*_login(user, public_key(seed), allowed), "  }"]
    lines += ["}", "leafnodes {", "  remotes: ["]
    for user, seed in users:
        lines += [
            "    {",
            f"      url: {json.dumps(hub)}",
            f"      account: {account_of(user)}",
            f"      nkey: {seed.decode()}",
            "      compression: off",
            "      tls {",
            *(
                f"        {name}: {json.dumps(str(folder / 'tls' / file))}"
                for name, file in (("ca_file", "ca.pem"), ("cert_file", "server.pem"), ("key_file", "server.key"))
            ),
            "      }",
            "    }",
        ]
    return "\n".join([*lines, "  ]", "}", ""])


def local(subject: str) -> str:
    """How a user writes a subject: the API of its own account, which holds no streams, is at the plain one."""
    return subject.replace("$JS.API.", f"$JS.{DOMAIN}.API.", 1)


def account_of(user: User) -> str:
    """Name of a user's account."""
    return f"{'-'.join(user.roles)}_{user.name}"


def _account(user: User, key: str, allowed: Permissions) -> list[str]:
    return [
        *_login(user, key, allowed),
        "    imports: [",
        *(
            f"      {{ service: {{ account: {STREAMS_ACCOUNT}, subject: {json.dumps(subject)} }},"
            f" to: {json.dumps(local(subject))} }}"
            for subject in allowed.publish
        ),
        "    ]",
        "  }",
    ]


def _login(user: User, key: str, allowed: Permissions) -> list[str]:
    """The beginning of an account: its one user."""
    return [
        f"  {account_of(user)} {{",
        "    users: [ {",
        f"      nkey: {key}",
        "      permissions: {",
        f"        publish: {{ allow: {json.dumps([local(subject) for subject in allowed.publish])} }}",
        f"        subscribe: {{ allow: {json.dumps(list(allowed.subscribe))} }}",
        "      }",
        "    } ]",
    ]

"""Sections that every daemon reads, whatever its roles: [node], [bus], [status], [log]."""

from dataclasses import dataclass
from pathlib import Path

from tide_daemon.config.fields import setting

MIB = 1 << 20
GIB = 1 << 30
NAME = (r"[a-z0-9-]{1,64}", "1 to 64 of the characters a-z, 0-9 and -")


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """Who this daemon is and where its files are."""

    name: str = setting(
        "",
        "Name of this node in subjects, reports and metrics; unique in the fleet.",
        pattern=NAME,
        computed="host name in lower case, other characters replaced by -",
    )
    model: str = setting(
        "target", "Short name of the target model in subjects. The same on every node that shares drafts.", pattern=NAME
    )
    state_dir: Path | None = setting(
        None,
        "Files that survive a restart: sample store, drafts, embedded broker.",
        computed="$STATE_DIRECTORY, else $XDG_STATE_HOME/tide-daemon, else ~/.local/state/tide-daemon",
    )
    run_dir: Path | None = setting(
        None,
        "Sockets that live as long as the daemon.",
        computed="$RUNTIME_DIRECTORY, else <state_dir>/run",
    )
    drain_deadline_s: float = setting(
        30.0,
        "After SIGTERM the roles may finish for this long, then they are cut off (exit code 5).",
        unit="s",
        minimum=0.1,
        maximum=3600,
        reloads=True,
    )
    restart_backoff_max_s: float = setting(
        30.0,
        "A role that failed is started again after 0.5 s, doubling up to this.",
        unit="s",
        minimum=0.5,
        maximum=3600,
    )


@dataclass(frozen=True, slots=True)
class BusConfig:
    """The NATS server, and how much it may hold."""

    url: str = setting(
        "",
        "Address of the NATS server, several with commas. Empty: `--role all` starts a private one.",
        pattern=(r"(nats|tls)://[^\s,]+(,(nats|tls)://[^\s,]+)*", "nats://HOST:PORT or tls://HOST:PORT"),
    )
    embedded_port: int = setting(
        0, "Port of the private NATS server on 127.0.0.1; 0 takes a free one.", minimum=0, maximum=65535
    )
    credentials_file: Path | None = setting(None, "NATS credentials (.creds) of this role's user.")
    nkey_file: Path | None = setting(None, "NKEY seed of this role's user, if not by credentials.")
    tls_ca_file: Path | None = setting(None, "Certificates that may sign the server's. Needs a tls:// address.")
    tls_cert_file: Path | None = setting(None, "This client's certificate, for mutual TLS.")
    tls_key_file: Path | None = setting(None, "Private key of tls_cert_file.")
    allow_plaintext: bool = setting(
        False,
        "Talk to a broker on another machine without TLS: prompts can be read off the hidden states on the wire.",
    )
    manage_streams: bool = setting(
        True,
        "Make streams at the start, and raise their limits where this file has higher ones; lowering, which deletes, "
        "is for `tide-daemon admin init`. False for users that may do neither: `admin init` does it all.",
    )
    connect_timeout_s: float = setting(
        20.0,
        "Within this the broker must answer at the start, JetStream too, or the daemon ends with exit code 3. A "
        "server goes on trying.",
        unit="s",
        minimum=0.5,
        maximum=600,
    )
    domain: str = setting(
        "", "JetStream domain of the streams; empty for the server's own, tide for users of `tide-daemon admin users`."
    )
    replicas: int = setting(1, "Servers of a cluster that hold each stream: 1, 3 or 5.", minimum=1, maximum=5)
    hidden_max_bytes: int = setting(
        1 * GIB, "Size of the hidden-state stream; the oldest go first.", unit="bytes", minimum=16 * MIB
    )
    hidden_max_age_s: float = setting(
        86400.0, "Age at which hidden states leave the stream.", unit="s", minimum=60, maximum=30 * 86400
    )
    draft_max_bytes: int = setting(
        2 * GIB, "Size of the draft stream; when it is full new candidates are refused.", unit="bytes", minimum=16 * MIB
    )
    target_max_bytes: int = setting(
        4 * GIB,
        "Size of the stream with the target's embedding and head, for trainers that have no file of them.",
        unit="bytes",
        minimum=16 * MIB,
    )
    report_max_age_s: float = setting(86400.0, "How long reports are kept.", unit="s", minimum=600, maximum=366 * 86400)
    journal_max_bytes: int = setting(
        512 * MIB, "Size of the stream of decisions; the oldest go first.", unit="bytes", minimum=1 * MIB
    )


@dataclass(frozen=True, slots=True)
class StatusConfig:
    """The HTTP endpoint with health, metrics and the status page."""

    enabled: bool = setting(True, "Serve /healthz, /readyz, /status, /metrics and the page.")
    host: str = setting("127.0.0.1", "Address to listen on. Anything but loopback needs a token.")
    port: int = setting(8790, "Port to listen on; 0 takes a free one and logs it.", minimum=0, maximum=65535)
    token: str = setting(
        "",
        "Clients must send it as `Authorization: Bearer TOKEN`; the page asks for it in a form.",
        pattern=(r"[\x21-\x7e]{16,256}", "16 to 256 printable characters without blanks"),
        secret=True,
        reloads=True,
    )


@dataclass(frozen=True, slots=True)
class LogConfig:
    """What goes to stdout."""

    level: str = setting(
        "info",
        "Least severe record that is written.",
        choices=("debug", "info", "warning", "error"),
        reloads=True,
    )
    format: str = setting(
        "auto", "auto: readable on a terminal, one JSON object a line otherwise.", choices=("auto", "console", "json")
    )

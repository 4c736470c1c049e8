"""The machine that a role is to run on: packages, disk, shared memory, permissions, ports, limits."""

import os
import resource
import shutil
import socket
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from tide_daemon.config.sections import Config
from tide_daemon.tools.checks.finding import FAILED, OK, WARNING, Finding

SGLANG = "0.5.23"
"""The release whose source the hooks were written against."""
_NEEDED = {"server": ("numpy", "torch", "safetensors"), "trainer": ("numpy", "torch", "safetensors"), "controller": ()}
_MIN_FILES = 4096
_MIB = 1 << 20
_DRAFT_BYTES = 512 * _MIB
"""Room for one draft of a large target: its layer, embedding and head in bf16."""


def check_machine(config: Config, roles: Sequence[str]) -> list[Finding]:
    """All findings that need no network."""
    return [
        *_packages(config, roles),
        *_disk(config, roles),
        *_shared_memory(config, roles),
        *_permissions(config),
        *_ports(config, roles),
        _open_files(),
    ]


def _packages(config: Config, roles: Sequence[str]) -> list[Finding]:
    found = [Finding("python", OK, sys.version.split()[0])]
    for package in sorted({package for role in roles for package in _NEEDED[role]}):
        version = _version(package)
        advice = "" if version else f"pip install 'tide-daemon[{'trainer' if 'trainer' in roles else 'server'}]'"
        found.append(Finding(f"package {package}", OK if version else FAILED, version or "not installed", advice))
    if "server" in roles and config.server.mode == "launch":
        version = _version("sglang")
        state = FAILED if not version else OK if version == SGLANG else WARNING
        advice = {
            FAILED: "pip install 'tide-daemon[sglang]'",
            WARNING: f"the hooks were written for {SGLANG}; capture and swap stay off if one of them does not take",
            OK: "",
        }[state]
        found.append(Finding("package sglang", state, version or "not installed", advice))
        if version:
            names = {point.name for point in metadata.entry_points(group="sglang.srt.plugins")}
            state = OK if "tide" in names else FAILED
            advice = "" if state == OK else "install tide-daemon into the Python that runs SGLang"
            found.append(Finding("plug-in", state, "registered" if state == OK else "SGLang does not see it", advice))
    return found


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _disk(config: Config, roles: Sequence[str]) -> list[Finding]:
    assert config.node.state_dir is not None, "the loader fills it in"
    needed = 64 * _MIB
    needed += config.trainer.store_max_bytes + 4 * _DRAFT_BYTES if "trainer" in roles else 0
    needed += config.server.drafts_kept * _DRAFT_BYTES if "server" in roles else 0
    folder = _existing(config.node.state_dir)
    held = sum(path.stat().st_size for path in config.node.state_dir.rglob("*") if path.is_file())
    free = shutil.disk_usage(folder).free
    text = f"{free / _MIB:,.0f} MiB free at {folder}, {held / _MIB:,.0f} MiB in use by us"
    if free + held >= needed:
        return [Finding("disk", OK, text)]
    advice = (
        f"up to {needed / _MIB:,.0f} MiB may be used: free some, move node.state_dir, "
        "or lower trainer.store_max_bytes and server.drafts_kept"
    )
    return [Finding("disk", FAILED if free < 256 * _MIB else WARNING, text, advice)]


def _shared_memory(config: Config, roles: Sequence[str]) -> list[Finding]:
    if "server" not in roles:
        return []
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return [Finding("shared memory", FAILED, "there is no /dev/shm", "mount a tmpfs there")]
    free, needed = shutil.disk_usage(folder).free, config.capture.ring_bytes
    text = f"{free / _MIB:,.0f} MiB free in /dev/shm, the ring takes {needed / _MIB:,.0f} MiB"
    if free >= needed:
        return [Finding("shared memory", OK, text)]
    return [Finding("shared memory", FAILED, text, "docker run --shm-size, or lower capture.ring_bytes")]


def _permissions(config: Config) -> list[Finding]:
    assert config.node.state_dir is not None and config.node.run_dir is not None, "the loader fills these in"
    found = []
    for name, folder in (("node.state_dir", config.node.state_dir), ("node.run_dir", config.node.run_dir)):
        there = _existing(folder)
        if not os.access(there, os.W_OK | os.X_OK):
            advice = f"chown {there} to the user that runs the daemon, or set {name}"
            found.append(Finding(name, FAILED, f"cannot write to {there}", advice))
        elif folder.is_dir() and folder.stat().st_mode & 0o077:
            found.append(Finding(name, WARNING, f"others may look into {folder}", f"chmod 700 {folder}"))
        else:
            found.append(Finding(name, OK, str(folder)))
    secrets = {
        "bus.nkey_file": config.bus.nkey_file,
        "bus.credentials_file": config.bus.credentials_file,
        "bus.tls_key_file": config.bus.tls_key_file,
    }
    for name, path in secrets.items():
        if path is None:
            continue
        if not os.access(path, os.R_OK):
            found.append(Finding(name, FAILED, f"cannot read {path}", "chown or chmod it for the daemon's user"))
        elif path.stat().st_mode & 0o007:
            found.append(Finding(name, FAILED, f"everybody may read {path}", f"chmod o= {path}"))
        else:
            found.append(Finding(name, OK, str(path)))
    return found


def _ports(config: Config, roles: Sequence[str]) -> list[Finding]:
    wanted = []
    if config.status.enabled and config.status.port:
        wanted.append(("status.port", config.status.host, config.status.port))
    if "server" in roles and config.server.mode == "launch":
        wanted.append(("server.port", config.server.host, config.server.port))
    if not config.bus.url and config.bus.embedded_port:
        wanted.append(("bus.embedded_port", "127.0.0.1", config.bus.embedded_port))
    found = []
    for name, host, port in wanted:
        problem = _why_not(host, port)
        advice = "stop what listens there (a daemon that runs already?), or choose another port" if problem else ""
        found.append(Finding(name, FAILED if problem else OK, f"{host}:{port} {problem or 'is free'}", advice))
    return found


def _why_not(host: str, port: int) -> str:
    """Why nobody can listen there, "" if one can."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return ""


def _open_files() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= _MIN_FILES:
        return Finding("open files", OK, f"{soft} allowed")
    if soft >= 1024:
        return Finding("open files", WARNING, f"{soft} allowed", f"ulimit -n {_MIN_FILES}, or LimitNOFILE in the unit")
    return Finding("open files", FAILED, f"{soft} allowed", f"ulimit -n {_MIN_FILES}, or LimitNOFILE in the unit")


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above that is there."""
    return next(path for path in (folder, *folder.parents) if path.is_dir())

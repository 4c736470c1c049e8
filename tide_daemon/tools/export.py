"""`tide-daemon export`: writes a draft from the bus as a checkpoint folder that SGLang loads without us.

    tide-daemon export /models/draft --url tls://broker:4222 --model gpt-oss-120b
    tide-daemon export /models/draft --config tide.toml --version 17

Every digest on the way is verified as a server node does it; the folder appears whole or not at all.
"""

import argparse
import asyncio
import json
import shutil
import tempfile
from pathlib import Path

from tide_daemon.bus.port import Bus
from tide_daemon.draft.config import DraftConfig
from tide_daemon.errors import ConfigError, DraftError
from tide_daemon.exit_codes import ExitCode
from tide_daemon.roles.controller_journal import read_end, read_record
from tide_daemon.roles.draft_fetch import DraftFetcher
from tide_daemon.tools.configured_bus import OpenBus, add_bus_arguments, open_configured_bus
from tide_daemon.wire import subjects
from tide_daemon.wire.records import NO_DRAFT, DraftManifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which draft, and where to."""
    parser.add_argument("folder", type=Path, help="where the checkpoint is written; must not exist, or be empty")
    parser.add_argument("--version", type=int, metavar="N", help="draft version; default: the one that is served")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of text")
    add_bus_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the checkpoint; returns the exit code."""
    return asyncio.run(run_on_bus(arguments, open_configured_bus))


async def run_on_bus(arguments: argparse.Namespace, open_bus: OpenBus) -> int:
    """Write the checkpoint that the arguments name, read through a bus that is opened and closed here."""
    folder = arguments.folder
    async with open_bus(arguments) as opened:
        model = opened.model
        manifest = await export(opened.bus, model, arguments.version, folder)
    config = DraftConfig.from_json(manifest.config_json)
    if arguments.json:
        shown = {
            "folder": str(folder),
            "model": model,
            "version": manifest.version,
            "digest": manifest.content_digest,
            "aux_layer_ids": list(config.aux_layer_ids),
            "num_train_tokens": manifest.num_train_tokens,
        }
        print(json.dumps(shown))
    else:
        print(f"version {manifest.version} of {model} is in {folder}  (digest {manifest.content_digest[:16]})")
        print(f"trained on {manifest.num_train_tokens} response tokens; aux layers {list(config.aux_layer_ids)}")
        print(f"SGLang: --speculative-algorithm EAGLE3 --speculative-draft-model-path {folder}")
    return ExitCode.OK


async def export(bus: Bus, model: str, version: int | None, folder: Path) -> DraftManifest:
    """Write a version, None for the one that is served, to `folder`; returns its manifest.

    Raises:
        ConfigError: the folder is in use.
        DraftError: there is no such version, or it is not what its manifest says.
        BusError: the broker is away.
    """
    if await asyncio.to_thread(_is_in_use, folder):
        raise ConfigError(f"{folder} exists and is not an empty folder; name another one")
    if version is None:
        fleet = (await read_end(bus, model)).fleet
        version = NO_DRAFT if fleet is None else fleet.serving_version
        if version == NO_DRAFT:
            raise DraftError(f"no draft of {model} is served; choose one with --version, or another --model")
    message = await bus.last(subjects.draft_manifest(model, version))
    manifest = None if message is None else read_record(message)
    if not isinstance(manifest, DraftManifest):
        raise DraftError(f"version {version} of {model} is not on the bus (any more)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    cache = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        fetched = await DraftFetcher(bus, cache).fetch(manifest.spec, version, manifest.content_digest)
        fetched.rename(folder)  # takes the place of an empty folder
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    return manifest


def _is_in_use(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))

"""`tide-daemon export`: writes a draft from the bus as a checkpoint folder that SGLang or vLLM loads without us.

    tide-daemon export /models/draft --url tls://broker:4222 --model gpt-oss-120b
    tide-daemon export /models/draft --config tide.toml --version 17
    tide-daemon export /models/draft --format speculators --verifier openai/gpt-oss-120b

The format `sglang` is SGLang's and ours; `speculators` is vLLM's and names the target (the verifier) by the name or
path under which vLLM shall load it: a folder's config.json is read for its architecture.
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

FORMATS = ("sglang", "speculators")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which draft, and where to."""
    parser.add_argument("folder", type=Path, help="where the checkpoint is written; must not exist, or be empty")
    parser.add_argument("--version", type=int, metavar="N", help="draft version; default: the one that is served")
    add_format_arguments(parser)
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of text")
    add_bus_arguments(parser)


def add_format_arguments(parser: argparse.ArgumentParser) -> None:
    """Who shall load it."""
    parser.add_argument("--format", choices=FORMATS, default="sglang", help="whose checkpoint it is (sglang)")
    parser.add_argument("--verifier", metavar="NAME", help="with speculators: the target's name or path for vLLM")


def run(arguments: argparse.Namespace) -> int:
    """Write the checkpoint; returns the exit code."""
    return asyncio.run(run_on_bus(arguments, open_configured_bus))


async def run_on_bus(arguments: argparse.Namespace, open_bus: OpenBus) -> int:
    """Write the checkpoint that the arguments name, read through a bus that is opened and closed here."""
    folder, verifier = arguments.folder, arguments.verifier
    for_vllm = arguments.format == "speculators"
    if for_vllm != bool(verifier):
        raise ConfigError("--verifier: the format speculators needs it, and no other reads it")
    async with open_bus(arguments) as opened:
        model = opened.model
        manifest = await export(opened.bus, model, arguments.version, folder, verifier)
    config = DraftConfig.from_json(manifest.config_json)
    if arguments.json:
        shown = {
            "folder": str(folder),
            "format": arguments.format,
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
        if for_vllm:
            print(
                f'vLLM: vllm serve {folder}, or vllm serve {verifier} --speculative-config \'{{"model": "{folder}"}}\''
            )
        else:
            print(f"SGLang: --speculative-algorithm EAGLE3 --speculative-draft-model-path {folder}")
    return ExitCode.OK


async def export(bus: Bus, model: str, version: int | None, folder: Path, verifier: str | None = None) -> DraftManifest:
    """Write a version, None for the one that is served, to `folder`; returns its manifest.

    Args:
        verifier: for vLLM's format the target's name or path; None for SGLang's.

    Raises:
        ConfigError: the folder is in use, or the verifier's config.json is not one.
        DraftError: there is no such version, or it is not what its manifest says.
        BusError: the broker is away.
    """
    if await asyncio.to_thread(_is_in_use, folder):
        raise ConfigError(f"{folder} exists and is not an empty folder; name another one")
    architectures = [] if verifier is None else await asyncio.to_thread(_architectures, verifier)
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
        if verifier is None:
            fetched.rename(folder)  # takes the place of an empty folder
        else:
            from tide_daemon.draft import checkpoint, speculators_format

            held = checkpoint.load(fetched, manifest.content_digest)
            speculators_format.save(folder, held, verifier, architectures, manifest.num_steps)
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    return manifest


def _is_in_use(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def _architectures(verifier: str) -> list[str]:
    """As in the config.json of a folder; none for the name of a model that lies elsewhere."""
    path = Path(verifier) / "config.json"
    if not path.is_file():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("architectures") or []
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"--verifier: {path} cannot be read: {error}") from error
    return [str(name) for name in found]

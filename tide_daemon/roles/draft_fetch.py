"""Fetches a draft version from the bus into a verified checkpoint directory. Shared by server and trainer roles.

What arrives is hostile until proven: the manifest must be for this target, layers, vocabulary and digest; sizes are
summed before anything is fetched; each part's digest, the base's digest before a delta is applied, and the content
digest after it are checked. A directory appears in the cache whole or not at all, and is verified again when it is
used, so a damaged one is fetched anew. The walk from a delta to its anchor is bounded.
"""

import asyncio
import os
import shutil
from pathlib import Path

import structlog

from tide_daemon.bus.port import Bus
from tide_daemon.draft import checkpoint, delta
from tide_daemon.draft.checkpoint import Checkpoint, tensor_digests
from tide_daemon.draft.config import DraftConfig
from tide_daemon.errors import DraftError, StoreError, WireError
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.records import DraftManifest, DraftPart, TargetSpec
from tide_daemon.wire.weights import join_parts, verify_part

log = structlog.get_logger()

MAX_CHAIN = 64
MAX_PAYLOAD_BYTES = 8 << 30


class DraftFetcher:
    """A cache of verified drafts under one directory, filled from the bus. One fetch at a time."""

    def __init__(self, bus: Bus, cache_dir: Path, keep: int = 8, max_payload_bytes: int = MAX_PAYLOAD_BYTES) -> None:
        """`keep` is how many drafts the cache holds, the most recently used ones."""
        self._bus = bus
        self._cache = cache_dir
        self._keep = keep
        self._max_payload_bytes = max_payload_bytes
        self._lock = asyncio.Lock()

    async def fetch(self, spec: TargetSpec, version: int, digest: str) -> Path:
        """Directory of the verified draft; SGLang can load it as it is.

        Raises:
            DraftError: the version does not exist (any more), is not for this target, or is not what it says.
            BusError: the broker is away; try again.
            StoreError: the disk refused.
        """
        async with self._lock:
            path, _ = await self._fetch(spec, version, digest, ())
            await asyncio.to_thread(self._prune, path)
            return path

    async def is_published(self, spec: TargetSpec, version: int, digest: str) -> bool:
        """Whether a reader without anything could fetch it: manifests and first parts down to its anchor are there.

        Parts of a version are written in their order, so the first one is the first that a stream gives up.

        Raises:
            DraftError: something on the way is not what it says, or is for another target.
            BusError: the broker is away; try again.
        """
        for _ in range(MAX_CHAIN):
            if await self._bus.last(subjects.draft_manifest(spec.model, version)) is None:
                return False
            manifest = await self._manifest(spec, version, digest)
            if await self._bus.last(subjects.draft_part(spec.model, version, 0)) is None:
                return False
            if manifest.base_version is None:
                return True
            version, digest = manifest.base_version, manifest.base_digest
        return False

    async def adopt(self, version: int, source: Path, digest: str) -> Path:
        """Put a draft that is on this machine already (a trainer's own candidate) into the cache."""
        async with self._lock:
            path = self._path(version, digest)
            await asyncio.to_thread(self._copy, source, path, digest)
            return path

    def _path(self, version: int, digest: str) -> Path:
        return self._cache / f"{version:08d}-{digest[:16]}"

    async def _fetch(
        self, spec: TargetSpec, version: int, digest: str, above: tuple[int, ...]
    ) -> tuple[Path, Checkpoint]:
        path = self._path(version, digest)
        held = await asyncio.to_thread(self._load, path, digest)
        if held is not None:
            check_config(held.config, spec)
            return path, held
        if version in above or len(above) >= MAX_CHAIN:
            raise DraftError(f"draft {above[0]} needs a chain of more than {MAX_CHAIN} deltas, or a ring: {above[:8]}")
        manifest = await self._manifest(spec, version, digest)
        base = None
        if manifest.base_version is not None:
            _, base = await self._fetch(spec, manifest.base_version, manifest.base_digest, (*above, version))
        parts = [await self._part(manifest, index) for index in range(len(manifest.parts))]
        payload = await asyncio.to_thread(join_parts, manifest, parts)
        held = await asyncio.to_thread(self._build, payload, base, manifest, path)
        log.info("draft_fetched", version=version, digest=digest[:12], payload_bytes=len(payload), links=len(above))
        return path, held

    async def _manifest(self, spec: TargetSpec, version: int, digest: str) -> DraftManifest:
        subject = subjects.draft_manifest(spec.model, version)
        manifest = await self._record(subject)
        if not isinstance(manifest, DraftManifest):
            raise DraftError(f"draft {version} is not on the bus: {subject} holds no manifest")
        check_manifest(manifest, spec, digest)
        total = sum(entry.num_bytes for entry in manifest.parts)
        if total > self._max_payload_bytes:
            raise DraftError(f"draft {version} has {total} bytes, over the limit of {self._max_payload_bytes} bytes")
        return manifest

    async def _part(self, manifest: DraftManifest, index: int) -> DraftPart:
        subject = subjects.draft_part(manifest.spec.model, manifest.version, index)
        part = await self._record(subject)
        if not isinstance(part, DraftPart):
            raise DraftError(f"part {index} of draft {manifest.version} is not on the bus")
        try:
            verify_part(manifest, part)
        except WireError as error:
            raise DraftError(str(error)) from error
        return part

    async def _record(self, subject: str) -> object:
        message = await self._bus.last(subject)
        if message is None:
            return None
        try:
            record = await asyncio.to_thread(envelope.decode, message.data)
            subjects.verify(subject, record)
        except WireError as error:
            raise DraftError(f"{subject} holds something unreadable: {error}") from error
        return record

    @staticmethod
    def _load(path: Path, digest: str) -> Checkpoint | None:
        """A cached draft, None if it is not there; a damaged one is removed."""
        if not path.is_dir():
            return None
        try:
            held = checkpoint.load(path, digest)
        except DraftError as error:
            log.warning("cached_draft_damaged", path=str(path), error=str(error))
            shutil.rmtree(path, ignore_errors=True)
            return None
        os.utime(path)
        return held

    @staticmethod
    def _build(payload: bytes, base: Checkpoint | None, manifest: DraftManifest, path: Path) -> Checkpoint:
        built = delta.apply(payload, base)
        if built.digest != manifest.content_digest:
            raise DraftError(f"draft {manifest.version} unpacks to {built.digest}, not to {manifest.content_digest}")
        check_config(built.config, manifest.spec)
        if built.vocab_map.digest() != manifest.vocab_map_digest:
            raise DraftError(f"draft {manifest.version} has another vocabulary map than its manifest says")
        listed = {entry.name: (entry.dtype, entry.shape, entry.digest) for entry in manifest.tensors}
        if listed != tensor_digests(built.tensors):
            raise DraftError(f"draft {manifest.version} has other tensors than its manifest lists")
        try:
            return checkpoint.save(path, built.config, built.tensors)
        except OSError as error:
            raise StoreError(f"cannot write draft {manifest.version} to {path}: {error}") from error

    @staticmethod
    def _copy(source: Path, path: Path, digest: str) -> None:
        held = checkpoint.load(source, digest)
        try:
            checkpoint.save(path, held.config, held.tensors)
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error}") from error

    def _prune(self, in_use: Path) -> None:
        """Drop the least recently used drafts beyond `keep`, and what a kill left half written."""
        drafts = [path for path in self._cache.iterdir() if path.is_dir() and not path.name.startswith(".")]
        for path in self._cache.iterdir():
            if path.name.startswith("."):
                shutil.rmtree(path, ignore_errors=True)
        for path in sorted(drafts, key=lambda draft: draft.stat().st_mtime, reverse=True)[self._keep :]:
            if path != in_use:
                shutil.rmtree(path, ignore_errors=True)


def check_manifest(manifest: DraftManifest, spec: TargetSpec, digest: str) -> None:
    """Return if a manifest is for this target and content.

    Raises:
        DraftError: says which field differs.
    """
    if manifest.spec != spec:
        raise DraftError(
            f"draft {manifest.version} is for {manifest.spec.target_fingerprint[:12]}, aux layers "
            f"{list(manifest.spec.aux_layer_ids)}; this target is {spec.target_fingerprint[:12]}, "
            f"aux layers {list(spec.aux_layer_ids)}"
        )
    if manifest.content_digest != digest:
        raise DraftError(f"draft {manifest.version} is {manifest.content_digest[:16]} on the bus, wanted {digest[:16]}")
    config = DraftConfig.from_json(manifest.config_json)
    check_config(config, spec)
    if config.draft_vocab_size != manifest.draft_vocab_size:
        raise DraftError(f"draft {manifest.version} states two draft vocabulary sizes")


def check_config(config: DraftConfig, spec: TargetSpec) -> None:
    """Return if a draft's config fits a target: layers, width and vocabulary.

    Raises:
        DraftError: it does not.
    """
    wanted = (
        ("aux_layer_ids", spec.aux_layer_ids),
        ("target_hidden_size", spec.hidden_size),
        ("vocab_size", spec.vocab_size),
    )
    for name, value in wanted:
        if getattr(config, name) != value:
            raise DraftError(f"the draft's {name} is {getattr(config, name)}, the target's is {value}")

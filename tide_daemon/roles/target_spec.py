"""Which target this trainer works for: the first one it is shown that fits, remembered on disk from then on.

A trainer's store, rounds and drafts belong to one target. Chunks, drafts and rows of another are refused by the whole
record (fingerprint, vocabulary, layers), so a re-configured server cannot mix two targets' states.
"""

import dataclasses
import json
import threading
from pathlib import Path

import structlog

from tide_daemon.errors import StoreError
from tide_daemon.trainer.rounds import write_json
from tide_daemon.wire.records import TargetSpec

log = structlog.get_logger()


def plain_spec(spec: TargetSpec) -> dict[str, object]:
    """Plain values for the pipe to the worker."""
    return {name: getattr(spec, name) for name in TargetSpec.__slots__}


class SpecKeeper:
    """Holds the one TargetSpec of a state directory. Thread-safe."""

    def __init__(self, state_dir: Path, model: str, target_path: str) -> None:
        """`target_path`: folder of the target, "" if this node has none; its config.json bounds what is accepted.

        Raises:
            StoreError: what is on the disk cannot be read, or is for another model.
        """
        self._path = state_dir / "target.json"
        self._model = model
        self._lock = threading.Lock()
        self._spec: TargetSpec | None = None
        self._shape = _shape_of(target_path) if target_path else None
        if self._path.exists():
            self._spec = _read(self._path)
            if self._spec.model != model:
                raise StoreError(
                    f"{state_dir} belongs to model {self._spec.model!r}, the configuration says {model!r}; "
                    "use another state directory"
                )

    @property
    def spec(self) -> TargetSpec | None:
        """The target, None until one was seen."""
        return self._spec

    def offer(self, spec: TargetSpec) -> TargetSpec | None:
        """The target to hold things against: the remembered one, else this one if it fits; None if it does not.

        Raises:
            StoreError: it cannot be remembered.
        """
        with self._lock:
            if self._spec is None and self._fits(spec):
                write_json(self._path, dataclasses.asdict(spec))
                self._spec = spec
                log.info("target_adopted", fingerprint=spec.target_fingerprint[:12], aux_layers=spec.aux_layer_ids)
            return self._spec

    def _fits(self, spec: TargetSpec) -> bool:
        return spec.model == self._model and self._shape in (None, (spec.hidden_size, spec.vocab_size))


def _shape_of(target_path: str) -> tuple[int, int]:
    path = Path(target_path) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return int(config["hidden_size"]), int(config["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"cannot read the target's {path}: {error}; check trainer.target_path") from error


def _read(path: Path) -> TargetSpec:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return TargetSpec(**{**values, "aux_layer_ids": tuple(values["aux_layer_ids"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"cannot read {path}: {error}; restore it or begin with an empty state directory") from error

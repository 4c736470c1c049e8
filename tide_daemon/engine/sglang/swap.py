"""Swapping draft weights: stage in spare buffers, copy in place between two batches, read back.

- *stage* (control thread): read and validate a checkpoint (draft/checkpoint.py: names, shapes, map,
  digest) and let each parameter's own weight loader write it into a spare tensor of the same shape, for a GPU in
  pinned host memory.
  The loaders know about fused q/k/v, gate/up and tensor-parallel shards.
- *apply* (between two batches, under the step lock): one in-place copy per parameter. Addresses do not
  change, so captured graphs stay valid; nothing is drained, flushed or re-captured. The vocabulary map
  is more than a parameter: the draft worker holds `hot_token_id`, a copy of the model's (made in
  srt/speculative/eagle_worker_v2.py, init_lm_head), and indexes with it in draft_forward. The model's own
  stays on the CPU (srt/models/llama_eagle3.py 352). Both are written in place; `load_weights` would rebind
  the model's and leave the worker's as it was.
- *read back* (control thread): the digest is computed from the live parameters, not from what was sent.

Requests in flight keep the KV cache that the previous version wrote: their drafts are a little worse
until they end, their output is the same (the target verifies every token).

Names: draft_weights.py.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tide_daemon.draft.checkpoint import Checkpoint, content_digest, load
from tide_daemon.engine.port import DraftState
from tide_daemon.engine.sglang.draft_weights import draft_parameters, live_name, live_tensors
from tide_daemon.engine.sglang.gpu import Device
from tide_daemon.errors import DraftError, EngineError
from tide_daemon.wire.records import NO_DRAFT

_SHAPE_FIELDS = (
    "draft_vocab_size",
    "vocab_size",
    "hidden_size",
    "target_hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
)
"""What must be equal: weight loaders fill what fits without complaint, and the module keeps its own constants."""


@dataclass(slots=True)
class _Staged:
    """What will be copied over the live draft; all tensors from `Device.spare_like`."""

    state: DraftState
    spare: dict[str, Tensor]
    hot_token_id: Tensor


class Swapper:
    """Owns the draft's weights in one engine process.

    Attributes:
        current: what was last applied (version) and read back (digest); the digest is "" in between.
        num_swaps: applied since the start.
    """

    def __init__(
        self,
        draft_worker: Any,
        tp_size: int,
        device: Device,
        step_lock: threading.Lock,
        on_applied: Callable[[int], None],
    ) -> None:
        """Check that the draft is what this file knows how to swap.

        Raises:
            EngineError: another architecture, packed or quantised weights, or a parameter is missing.
        """
        self._worker = draft_worker
        self._model = draft_worker.draft_runner.model
        self._tp_size = tp_size
        self._device = device
        self._mark: Any = None
        self._step_lock = step_lock
        self._on_applied = on_applied
        self._staging = threading.Lock()
        self._pending: _Staged | None = None
        self._staged: _Staged | None = None
        self._applied = threading.Event()
        self._applied_digest = ""
        self._spare: dict[str, Tensor] = {}
        self.num_swaps = 0
        self.current = DraftState(NO_DRAFT, "")
        if type(self._model).__name__ != "LlamaForCausalLMEagle3":
            raise EngineError(
                f"the draft model is {type(self._model).__name__}; only LlamaForCausalLMEagle3 can be swapped"
            )
        if draft_worker.hot_token_id is None:
            raise EngineError("the draft checkpoint given at the start has no d2t map; start with one that has")
        self._params = draft_parameters(self._model)
        self.draft_vocab_size = int(self._worker.hot_token_id.shape[0])
        self.vocab_size = int(self._model.config.vocab_size)

    # Control thread.

    def stage(self, directory: Path, state: DraftState) -> None:
        """Read a checkpoint into the spare buffers.

        Raises:
            EngineError: not a valid draft, not this digest, or of other shapes than the engine runs.
        """
        with self._staging:
            if self._pending is not None:
                raise EngineError("a swap is still waiting for the next batch")
            self._staged = None
            self._device.enter_thread()
            try:
                checkpoint = load(directory, state.digest)
            except DraftError as error:
                raise EngineError(f"draft {state.version} refused: {error}") from error
            self._check_shapes(checkpoint)
            self._device.wait_applied(self._mark)  # the last swap may not have read the spare buffers yet
            spare = self._fill_spare(checkpoint)
            hot = self._device.spare_like(self._worker.hot_token_id)
            hot.copy_(checkpoint.tensors["d2t"] + torch.arange(self.draft_vocab_size))
            self._staged = _Staged(state, spare, hot)

    def _check_shapes(self, checkpoint: Checkpoint) -> None:
        config = checkpoint.config
        live = self._model.config
        for name in _SHAPE_FIELDS:
            found, wanted = getattr(config, name), getattr(live, name)
            if found != wanted:
                raise EngineError(f"draft has {name} {found}, the engine runs {wanted}")
        rope_theta = live.rope_parameters["rope_theta"]
        if config.rope_theta != rope_theta:
            raise EngineError(f"draft has rope_theta {config.rope_theta}, the engine runs {rope_theta}")
        layers = live.eagle_config["eagle_aux_hidden_state_layer_ids"]
        if list(config.aux_layer_ids) != list(layers):
            raise EngineError(
                f"draft is for aux layers {list(config.aux_layer_ids)}, the engine captures {list(layers)}"
            )

    def _fill_spare(self, checkpoint: Checkpoint) -> dict[str, Tensor]:
        for name, live in self._params.items():
            if name not in self._spare:
                buffer: Tensor = torch.nn.Parameter(self._device.spare_like(live.data), requires_grad=False)
                for attribute, value in vars(live).items():
                    setattr(buffer, attribute, value)  # what weight loaders look at: output_dim, input_dim, ...
                self._spare[name] = buffer
        for name, tensor in checkpoint.tensors.items():
            if name in ("d2t", "t2d"):
                continue
            target, shard = live_name(name)
            buffer = self._spare[target]
            loader = getattr(buffer, "weight_loader", None)
            if loader is None:
                buffer.data.copy_(tensor)
            elif shard is None:
                loader(buffer, tensor)
            else:
                loader(buffer, tensor, shard)
        return self._spare

    def swap(self, idle_wait_s: float = 0.05) -> DraftState:
        """Apply what was staged and read it back. One rank only; for several see `apply_version`.

        The step loop applies it before its next batch. An engine with nothing to do has no next batch: then
        this thread applies it, holding the lock that every batch takes.

        Raises:
            EngineError: nothing staged, not applied in time, or the live weights are not what was staged.
        """
        with self._staging:
            if self._staged is None:
                raise EngineError("nothing is staged; stage a draft first")
            if self._tp_size > 1:
                raise EngineError("with tensor parallelism a swap goes to all ranks at once, by /set_internal_state")
            state = self._staged.state
            self._applied.clear()
            self._pending = self._staged
            if not self._applied.wait(idle_wait_s):
                self._device.enter_thread()
                with self._step_lock, self._device.applying():
                    self.apply_pending()
            self._staged = None
            digest = self.read_back()
            if digest != state.digest:
                raise EngineError(f"read back {digest} after swapping to version {state.version}, not {state.digest}")
            return self.current

    def read_back(self) -> str:
        """Content digest of the live parameters. With tensor parallelism a rank holds only shards: then
        the digest of what was staged, given that every live shard equals the staged one bit for bit."""
        self._device.enter_thread()
        self._device.wait_applied(self._mark)
        if self._tp_size > 1:
            equal = all(torch.equal(self._params[n].cpu(), self._spare[n]) for n in self._spare)
            digest = self._applied_digest if equal and self._spare else ""
        else:
            digest = content_digest(live_tensors(self._params, self._model.config, self._worker.hot_token_id))
        self.current = DraftState(self.current.version, digest)
        return digest

    # Step loop (or whoever holds the step lock).

    def apply_version(self, version: int, on_every_rank: Callable[[bool], bool]) -> None:
        """Apply what was staged under this version: the command of every tensor-parallel rank, between two batches.

        Args:
            on_every_rank: says whether all ranks call it with True; each rank calls it exactly once.

        Raises:
            EngineError: something else, or nothing, is staged on some rank; then none applies anything.
        """
        held = self._staging.acquire(blocking=False)  # a rank that is staging just now is not ready
        try:
            staged = self._staged if held else None
            ready = staged is not None and staged.state.version == version
            if not on_every_rank(ready):
                here = "this rank has it" if ready else "this rank has not"
                raise EngineError(f"version {version} is not staged on every rank; {here}")
            self._pending, self._staged = staged, None
            with self._device.applying():
                self.apply_pending()
        finally:
            if held:
                self._staging.release()

    def apply_pending(self) -> None:
        """Copy the pending draft in place, if there is one. The caller holds the step lock.

        On a CPU some milliseconds; on a GPU the copies are only queued, see gpu.py.
        """
        staged = self._pending
        if staged is None:
            return
        self._pending = None
        with torch.no_grad():
            for name, live in self._params.items():
                live.copy_(staged.spare[name], non_blocking=True)
            self._worker.hot_token_id.copy_(staged.hot_token_id, non_blocking=True)
            if self._model.hot_token_id is not self._worker.hot_token_id:
                self._model.hot_token_id.copy_(staged.hot_token_id, non_blocking=True)
        self._mark = self._device.applied(self._model)
        self._applied_digest = staged.state.digest
        # A version whose digest has not been read back yet is reported without one.
        self.current = DraftState(staged.state.version, "")
        self.num_swaps += 1
        self._on_applied(staged.state.version)
        self._applied.set()

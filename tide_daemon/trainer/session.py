"""One draft in training: what the worker drives, step by step.

Owns the draft, the optimizer with its moving average, and the vocabulary map. Time, files of samples and the
choice of samples are the worker's. Everything can be saved and taken up again; safetensors, no pickle.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tide_daemon.draft import checkpoint
from tide_daemon.draft.checkpoint import Checkpoint
from tide_daemon.draft.config import DraftConfig, config_for_target
from tide_daemon.draft.copying import CapturedRows
from tide_daemon.draft.init import initialise
from tide_daemon.draft.model import Eagle3Draft
from tide_daemon.draft.vocab import VocabMap, build_vocab_map, moved_rows
from tide_daemon.errors import DraftError, StoreError
from tide_daemon.trainer.batch import Batch, aux_tensor, pack
from tide_daemon.trainer.frozen import FrozenTarget
from tide_daemon.trainer.loss import head_cross_entropy
from tide_daemon.trainer.optimize import MasterAdamW, OptimizerSettings
from tide_daemon.trainer.sample import Sample
from tide_daemon.trainer.settings import TrainerSettings
from tide_daemon.trainer.targets import Targets
from tide_daemon.trainer.unroll import unroll
from tide_daemon.wire.records import TargetSpec

PROMPT_WEIGHT = 0.2
"""Weight of rows whose label is a word of the prompt, against 1 for generated ones: far more rows to learn from."""

REVISION_GAIN = 0.005
"""A draft that has learnt code covers 76% of the words of chat; revised, 87% after 160 requests (our measurement)."""

INIT_ROWS = 8_000
MIN_INIT_ROWS = 256
"""Rows of real traffic that the first weights are fitted on, see draft/copying.py."""

_KINDS = ("masters", "first", "second", "average")


class TrainSession:
    """Make one with `fresh`, `from_checkpoint` or `load_state`."""

    def __init__(self, draft: Eagle3Draft, vocab: VocabMap, frozen: FrozenTarget, settings: TrainerSettings) -> None:
        if draft.config.vocab_size != frozen.embed_tokens.shape[0]:
            raise DraftError("the draft belongs to a target with another vocabulary than the frozen tensors")
        self._compute = frozen.compute
        self._draft = draft.to(self._compute.device, self._compute.dtype)
        self._embed = frozen.embedding
        self._settings = settings
        self._follow(vocab)
        optimizer = OptimizerSettings(learning_rate=settings.learning_rate)
        self._optimizer = MasterAdamW(dict(draft.named_parameters()), optimizer)

    @classmethod
    def fresh(
        cls,
        spec: TargetSpec,
        counts: NDArray[np.float64],
        samples: Sequence[Sample],
        frozen: FrozenTarget,
        settings: TrainerSettings,
    ) -> "TrainSession":
        """A first draft.

        Args:
            counts: [V], how often each token is expected in the target's output; chooses the draft's vocabulary.
            samples: real traffic, some INIT_ROWS rows of it, to fit the first weights on; see draft/copying.py.

        Raises:
            DraftError: the target's config does not describe a target that EAGLE-3 drafts exist for.
        """
        config = config_for_target(frozen.config, spec.aux_layer_ids, settings.draft_vocab_size)
        vocab = build_vocab_map(torch.from_numpy(counts), config.draft_vocab_size, always=_end_tokens(frozen.config))
        draft = initialise(
            config,
            vocab,
            frozen.embed_tokens,
            frozen.lm_head,
            frozen.norm,
            last_layer=frozen.last_layer,
            rows=_captured_rows(samples),
            seed=settings.seed,
        )
        return cls(draft, vocab, frozen, settings)

    @classmethod
    def from_checkpoint(cls, held: Checkpoint, frozen: FrozenTarget, settings: TrainerSettings) -> "TrainSession":
        """Go on from a draft's weights with a fresh optimizer."""
        return cls(draft_of(held), held.vocab_map, frozen, settings)

    def revise_vocabulary(self, counts: NDArray[np.float64], frozen: FrozenTarget) -> int:
        """Follow the traffic's words: rows of tokens that became rare are given to tokens that became frequent.

        A row that is given away starts afresh from the target's head; all others keep weights and moments.
        Nothing changes unless at least REVISION_GAIN of the counted tokens would be covered besides.

        Args:
            counts: as in `fresh`.

        Returns:
            How many rows name another token now.
        """
        weights = torch.from_numpy(counts)
        always = _end_tokens(frozen.config)
        vocab = build_vocab_map(weights, self._vocab.size, previous=self._vocab, always=always)
        gain = float(weights[vocab.t2d].sum() - weights[self._vocab.t2d].sum())
        if gain < REVISION_GAIN * float(weights.sum()):
            return 0
        moved = moved_rows(self._vocab, vocab)
        rows = frozen.lm_head[vocab.target_ids[moved]].to(self._compute.device)
        moved = moved.to(self._compute.device)
        name = "lm_head.weight"
        self._draft.lm_head.weight.data[moved] = rows.to(self._compute.dtype)
        for held in (self._optimizer.masters, self._optimizer.average):
            held[name][moved] = rows.float()
        for held in (self._optimizer.first, self._optimizer.second):
            held[name][moved] = 0.0
        self._follow(vocab)
        return int(moved.sum())

    def _follow(self, vocab: VocabMap) -> None:
        self._vocab = vocab
        self._targets = Targets(vocab.draft_ids().to(self._compute.device), vocab.size)

    def step(self, samples: Sequence[Sample]) -> float | None:
        """One optimizer step; the mean loss a weighted row. A loss that is not finite changes nothing.

        Returns:
            The loss, or None when no row of the samples can be learnt from.
        """
        batch = pack(samples, self._settings.unroll_steps).to(self._compute.device)
        total, weight = self._loss(batch)
        if total is None or weight <= 0:
            return None
        loss = float(total.detach()) / weight
        if not np.isfinite(loss):
            return loss
        total.backward()
        norm = self._optimizer.step(1.0 / weight)
        return loss if np.isfinite(norm) else float(norm)

    def _loss(self, batch: Batch) -> tuple[Tensor | None, float]:
        """Weighted sum of cross-entropies over the unroll, and the sum of weights."""
        settings = self._settings
        inside = self._targets.draft_ids[batch.tokens.clamp(min=0)] >= 0
        base = torch.where(batch.generated, 1.0, PROMPT_WEIGHT) * ((batch.tokens >= 0) & inside)
        # Later steps are learnt where they will be run: on chains whose second draft is a generated token.
        chains = batch.generated[:, min(2, settings.unroll_steps)].nonzero().flatten()
        hidden, rows, places, weights = [], [], [], []
        for index, states in enumerate(unroll(self._draft, self._embed, batch, settings.unroll_steps, chains)):
            weight = base[states.rows, index + 1] * settings.unroll_decay**index
            chosen = weight.nonzero().flatten()
            hidden.append(states.hidden[chosen])
            rows.append(states.rows[chosen])
            places.append(torch.full_like(chosen, index))
            weights.append(weight[chosen])
        row, step = torch.cat(rows), torch.cat(places)
        if not row.numel():
            return None, 0.0

        def targets(part: slice) -> Tensor:
            return self._targets.distribution(batch, row[part], step[part])[0]

        states, head = self._draft.norm(torch.cat(hidden)), self._draft.lm_head.weight
        summed = head_cross_entropy(states, head, targets, torch.cat(weights))
        return summed.loss, summed.weight

    def save(self, directory: str | Path) -> Checkpoint:
        """Write the draft, with its averaged weights, as a checkpoint that SGLang loads.

        Raises:
            DraftError: a weight is not finite; nothing is written.
            OSError: the disk refused.
        """
        tensors = {name: value.to("cpu", torch.bfloat16) for name, value in self._optimizer.average.items()}
        return checkpoint.save(directory, self._draft.config, tensors | self._maps())

    def save_state(self, path: Path, step: int) -> None:
        """Write all that is needed to go on, to one file. Raises OSError when the disk refuses."""
        tensors = self._maps()
        for kind in _KINDS:
            values: Mapping[str, Tensor] = getattr(self._optimizer, kind)
            tensors |= {f"{kind}/{name}": value.cpu() for name, value in values.items()}
        metadata = {
            "config": self._draft.config.to_json(),
            "progress": json.dumps({"step": step, "optimizer_steps": self._optimizer.num_steps}),
        }
        try:
            save_file(tensors, path, metadata=metadata)
        except SafetensorError as error:
            raise OSError(f"cannot write {path}: {error}") from error

    @classmethod
    def load_state(cls, path: Path, frozen: FrozenTarget, settings: TrainerSettings) -> tuple["TrainSession", int]:
        """Inverse of `save_state`: the session and its step.

        Raises:
            StoreError: the file cannot be read, or is not one of ours.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
                config = DraftConfig.from_json(metadata["config"])
                progress = json.loads(metadata["progress"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
            draft = Eagle3Draft(config)
            draft.load_state_dict({name: tensors[f"masters/{name}"] for name, _ in draft.named_parameters()})
            session = cls(draft, VocabMap(tensors["d2t"], tensors["t2d"]), frozen, settings)
            for kind in _KINDS:
                held: dict[str, Tensor] = getattr(session._optimizer, kind)
                held.update({name: tensors[f"{kind}/{name}"].to(frozen.compute.device) for name in held})
            session._optimizer.num_steps = int(progress["optimizer_steps"])
            return session, int(progress["step"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError, DraftError) as error:
            raise StoreError(f"cannot take up the training state {path}: {error}") from error

    def _maps(self) -> dict[str, Tensor]:
        return {"d2t": self._vocab.d2t, "t2d": self._vocab.t2d}


def draft_of(held: Checkpoint) -> Eagle3Draft:
    """A checkpoint's draft, in float32: every bf16 weight as it is."""
    draft = Eagle3Draft(held.config)
    draft.load_state_dict({name: tensor for name, tensor in held.tensors.items() if name not in ("d2t", "t2d")})
    return draft


def _captured_rows(samples: Sequence[Sample]) -> CapturedRows | None:
    """The first INIT_ROWS rows, None when there are too few to fit anything on."""
    taken, num_rows = [], 0
    for sample in samples:
        if num_rows >= INIT_ROWS:
            break
        taken.append(sample)
        num_rows += sample.num_rows
    if num_rows < MIN_INIT_ROWS:
        return None
    tokens = np.concatenate([sample.token_ids for sample in taken]).astype(np.int64)
    return CapturedRows(torch.cat([aux_tensor(sample) for sample in taken]), torch.from_numpy(tokens))


def _end_tokens(config: Mapping[str, object]) -> tuple[int, ...]:
    """The target's end-of-sequence tokens: every answer ends with one, so the draft must be able to say it."""
    value = config.get("eos_token_id")
    values = value if isinstance(value, list) else [value]
    return tuple(token for token in values if isinstance(token, int))

"""The draft's vocabulary follows the traffic, and training goes on as if nothing had happened to the other rows."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.trainer_samples import SPEC, VOCAB, chunks, write_target
from tide_daemon.trainer.frozen import FrozenTarget, load_frozen
from tide_daemon.trainer.join import join, pieces
from tide_daemon.trainer.session import TrainSession
from tide_daemon.trainer.settings import TrainerSettings

SETTINGS = TrainerSettings("t1", "tiny", draft_vocab_size=64, learning_rate=3e-3)


@pytest.fixture
def frozen(tmp_path: Path) -> FrozenTarget:
    return load_frozen(write_target(tmp_path / "target"))


def counts_of(first: int, last: int) -> np.ndarray:
    counts = np.zeros(VOCAB)
    counts[first:last] = 10.0
    return counts


def test_rows_go_to_words_that_became_frequent(frozen: FrozenTarget, tmp_path: Path) -> None:
    """Only the rows that are given away change, and they begin as the target's own head."""
    session = TrainSession.fresh(SPEC, counts_of(0, 64), [], frozen, SETTINGS)
    samples = pieces([s for n in range(8) for s in join(chunks(n), Counter())], 512, 128)
    for _ in range(5):
        session.step(samples)
    before = session.save(tmp_path / "before")
    assert session.revise_vocabulary(counts_of(16, 80), frozen) == 15
    after = session.save(tmp_path / "after")
    # The end-of-sequence token, 0, keeps its row whatever its count.
    assert after.vocab_map.t2d.nonzero().flatten().tolist() == [0, *range(16, 79)]
    moved = before.vocab_map.target_ids != after.vocab_map.target_ids
    assert int(moved.sum()) == 15
    head = "lm_head.weight"
    assert torch.equal(before.tensors[head][~moved], after.tensors[head][~moved])
    assert torch.equal(after.tensors[head][moved], frozen.lm_head[after.vocab_map.target_ids[moved]])
    assert np.isfinite(session.step(samples))
    session.save_state(tmp_path / "state", 6)
    again, step = TrainSession.load_state(tmp_path / "state", frozen, SETTINGS)
    assert step == 6
    assert again.save(tmp_path / "again").digest == session.save(tmp_path / "same").digest


def test_a_small_gain_moves_nothing(frozen: FrozenTarget) -> None:
    """Rows do not come and go with every round's noise."""
    session = TrainSession.fresh(SPEC, counts_of(0, 64), [], frozen, SETTINGS)
    almost = counts_of(0, 64)
    almost[200] = 11.0
    almost[0:64] = 1000.0
    almost[5] = 1.0
    assert session.revise_vocabulary(almost, frozen) == 0

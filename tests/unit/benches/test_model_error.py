"""The grid of turns on an engine that is made up: what is asked of it, and what comes out."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from benches import model_error
from benches.model_error import BATCHES, CELLS, MAX_STEPS


def target_s(batch: int, steps: int) -> float:
    return 0.002 + 0.00005 * batch * (steps + 1)


def step_s(batch: int, steps: int) -> float:
    return target_s(batch, steps) + 0.0005 * steps


class MadeUpEngine:
    """Server and control channel in one: a drafted token is always accepted."""

    def __init__(self) -> None:
        self.num_steps = 0
        self.turns: list[tuple[int, int]] = []
        self.num_flushed = 0
        self._counts: Counter[tuple[int, int]] = Counter()
        self._batch = 0

    async def call(self, command: str, timeout_s: float, **arguments: Any) -> dict[str, Any]:
        if command == "set_steps":
            self.num_steps = arguments["table"][0][1] if arguments["table"] else 0
            self._batch = 0
            return {}
        assert command == "stats"
        rows = [
            [batch, steps, n, n * batch * (steps + 1), [n * batch] * steps, n * step_s(batch, steps),
             n * target_s(batch, steps), step_s(batch, steps)]
            for (batch, steps), n in self._counts.items()
        ]  # fmt: skip
        return {"steps": rows, "version": 1, "digest": "d", "problems": []}

    async def flush_cache(self) -> None:
        self.num_flushed += 1

    async def stream(self, session: object, ids: list[int], num_tokens: int) -> AsyncIterator[tuple[float, int]]:
        self._batch += 1
        await asyncio.sleep(0.001)
        batch, leads = self._batch, ids[0] == 0
        if leads:
            self.turns.append((batch, self.num_steps))
        done = 1
        yield time.perf_counter(), done
        while done < num_tokens:
            await asyncio.sleep(step_s(batch, self.num_steps))
            if leads:
                self._counts[batch, self.num_steps] += 1
            done = min(num_tokens, done + 1 + self.num_steps)
            yield time.perf_counter(), done


async def test_turns_of_a_round_have_each_number_of_steps(tmp_path: Path) -> None:
    """Which goes first moves on; every cell gets a prediction and a measurement."""
    engine = MadeUpEngine()
    grid = model_error._Grid(engine, engine, tmp_path / "reports")  # type: ignore[arg-type]
    for first, counts in ((0, False), (1, True)):
        for batch in BATCHES:
            await grid.round([[k] for k in range(batch)], batch, first, 41, counts=counts)
    assert engine.turns[:4] == [(1, 0), (1, 1), (1, 2), (1, 3)]
    assert engine.turns[16:20] == [(1, 1), (1, 2), (1, 3), (1, 0)]
    assert engine.num_flushed == len(engine.turns) == 2 * len(BATCHES) * (MAX_STEPS + 1)
    figures = grid.figures()
    assert {"median_error", "worst_error", "median_error_with_prefill"} <= set(figures)
    for batch, steps in CELLS:
        assert figures[f"accept_b{batch}_s{steps}"] == steps + 1
        gain = (steps + 1) * step_s(batch, 0) / step_s(batch, steps)
        assert figures[f"predicted_b{batch}_s{steps}"] == pytest.approx(gain, rel=0.05)
        # Sleeps are late on a busy machine, for all alike.
        assert 1.0 < figures[f"measured_b{batch}_s{steps}"] < 4.5

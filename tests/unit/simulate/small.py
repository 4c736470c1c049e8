"""A small scenario, as a document that tests change."""

import copy
from typing import Any

SMALL: dict[str, Any] = {
    "title": "small",
    "seed": 1,
    "report_s": 1.0,
    "policy": {"max_batch_size": 32, "train_min_tokens": 100_000, "train_shift_tokens": 50_000},
    "cost": {"gpu": {"tokens": [1, 64, 256], "target_ms": [5.0, 10.0, 15.0], "draft_ms": 0.5}},
    "servers": [{"name": "gpu", "count": 2, "cost": "gpu", "max_running": 32}],
    "trainers": [{"name": "trainer", "count": 1, "tokens_per_s": 20_000.0, "round_s": 5.0}],
    "workload": {
        "code": {"start": 0.3, "ceiling": 0.7, "half_tokens": 100_000.0},
        "chat": {"start": 0.1, "ceiling": 0.6, "half_tokens": 100_000.0},
    },
    "first_draft": {"code": 2_000_000.0},
    "phase": [{"name": "code", "hours": 0.1, "running": 16.0, "mix": {"code": 1.0}}],
}


def small(**changes: Any) -> dict[str, Any]:
    """A copy with top-level keys replaced."""
    return {**copy.deepcopy(SMALL), **changes}

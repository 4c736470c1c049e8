"""What tensor-parallel ranks agree on, over a real group of two CPU ranks; each test's ranks are two threads."""

import threading
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

from torch import distributed

from tide_daemon.engine.sglang import agree


def on_two_ranks(part: Callable[[int, Any], Any]) -> list[Any]:
    """What `part` returned for each rank, given a scheduler as agree.py reads it."""
    store, answers = distributed.HashStore(), {}

    def run(rank: int) -> None:
        group = distributed.ProcessGroupGloo(store, rank, 2, timedelta(seconds=30))
        scheduler = SimpleNamespace(rank=rank, tp_cpu_group=group, server_args=SimpleNamespace(nnodes=1))
        answers[rank] = part(rank, scheduler)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [answers[0], answers[1]]


def test_only_what_every_rank_has_counts() -> None:
    flags = [[True, False, True], [True, True, False]]
    assert on_two_ranks(lambda rank, scheduler: agree.on_every_rank(scheduler, flags[rank])) == [
        [True, False, False],
        [True, False, False],
    ]


def test_ranks_are_counted_on_one_node_only() -> None:
    def count(rank: int, scheduler: Any) -> tuple[int, int]:
        here = agree.num_ranks(scheduler)
        scheduler.server_args.nnodes = 2
        return here, agree.num_ranks(scheduler)

    assert on_two_ranks(count) == [(2, 1), (2, 1)]

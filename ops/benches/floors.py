"""What each bench measures and what must hold: the table that `ops/bench --list` prints and results are held to."""

import operator
from collections.abc import Callable
from dataclasses import dataclass

_COMPARE: dict[str, Callable[[float, float], bool]] = {"<=": operator.le, ">=": operator.ge, "=": operator.eq}


@dataclass(frozen=True, slots=True)
class Floor:
    """A bound that a figure must keep; `sign` is "<=", ">=" or "="."""

    sign: str
    bound: float

    def holds(self, figure: float) -> bool:
        """Whether the figure keeps the bound. NaN never does."""
        return _COMPARE[self.sign](figure, self.bound)

    def __str__(self) -> str:
        return f"{self.sign} {self.bound:g}"


@dataclass(frozen=True, slots=True)
class Bench:
    """One bench: the module in this folder, what it measures, its figures (None: reported, not bounded)."""

    module: str
    what: str
    figures: dict[str, Floor | None]


def _at_most(bound: float) -> Floor:
    return Floor("<=", bound)


def _at_least(bound: float) -> Floor:
    return Floor(">=", bound)


BENCHES: dict[str, Bench] = {
    "step": Bench(
        "step",
        "time of an EAGLE-3 step (3 drafts) over a plain step, batch 1, 4, 8; plain over its linear layers",
        {
            "ratio_b1": _at_most(1.32),
            "ratio_b4": _at_most(1.58),
            "ratio_b8": _at_most(1.68),
            "plain_over_linear_b1": _at_most(3.5),
        },
    ),
    "speculate": Bench(
        "speculate",
        "tokens/s against plain on held-out HumanEval prompts after learning from the others; chat with that draft",
        {
            "speedup_b1": _at_least(1.35),
            "speedup_b4": _at_least(1.10),
            "speedup_b8": _at_least(1.0),
            "stale_b8": _at_least(0.98),
        },
    ),
    "learn": Bench(
        "learn",
        "accept length on held-out requests after so many response tokens from nothing; training CPU per token",
        {
            "accept_chat_20k": _at_least(1.35),
            "accept_chat_100k": _at_least(1.55),
            "accept_humaneval_8k": _at_least(1.75),
            "accept_ngram_chat": None,
            "accept_ngram_humaneval": None,
            "train_cpu_ms_per_token": _at_most(6),
        },
    ),
    "capture": Bench(
        "capture",
        "serving tokens/s with capture and publishing on against the plug-in absent, batch 8",
        {"ratio_plain": _at_least(0.97), "ratio_spec": _at_least(0.97)},
    ),
    "swap": Bench(
        "swap",
        "longest gap between two tokens of running streams across 20 swaps, over the p99 gap without swaps",
        {"gap_ratio": _at_most(2), "requests_lost": Floor("=", 0)},
    ),
    "spine": Bench(
        "spine",
        "tokens/s from ring to trainer store through a real nats-server, over a bare pipeline's in the same run",
        {"ratio_h576": _at_least(0.8), "ratio_h4096": _at_least(0.8)},
    ),
    "memory": Bench(
        "memory",
        "growth of the worst process over 10 minutes under load; resident memory of the controller",
        {"growth_mb_per_hour": _at_most(30), "controller_mb": _at_most(120)},
    ),
    "lossless": Bench(
        "lossless",
        "share of 40 greedy answers that equal plain decoding's under random steps and swaps, float32 and bf16",
        {"equal_float32": Floor("=", 1), "equal_bf16": None, "equal_bf16_plain": None},
    ),
    "stock": Bench(
        "stock",
        "accept length of a draft in an SGLang without our plug-in over that under it, same prompts",
        {"accept_ratio": _at_least(0.97), "accept_stock": None, "accept_tide": None},
    ),
    "takeover": Bench(
        "takeover",
        "two controllers, the leader killed and frozen 20 times each: lease periods until the other leads; decisions",
        {"worst_lease_periods": _at_most(3), "lost": Floor("=", 0), "doubled": Floor("=", 0)},
    ),
    "model-error": Bench(
        "model_error",
        "predicted against measured speed-up, batch 1, 2, 4, 8 x steps 1, 2, 3, each from reports of the other cells",
        {"median_error": _at_most(0.09), "worst_error": None, "median_error_with_prefill": None},
    ),
    "shift-real": Bench(
        "shift_real",
        "code, chat, code again: tokens/s of TIDE against the draft frozen after the first phase, and against plain",
        {"over_frozen": _at_least(1.10), "over_plain": _at_least(1.05)},
    ),
    "regret": Bench(
        "regret",
        "simulated: tokens against the best fixed policy of each phase in hindsight; against the first draft",
        {
            "regret_min": _at_least(0.97),
            "over_static_abrupt": _at_least(1.10),
            "over_static_language": _at_least(1.10),
        },
    ),
    "never-worse": Bench(
        "never_worse",
        "simulated: the worst 10 minutes of any server in any scenario against plain decoding",
        {"worst_window": _at_least(0.97)},
    ),
    "boundary": Bench(
        "boundary",
        "simulated: changes of steps with load on the break-even point; loss against the better side",
        {"changes_per_minute": _at_most(1), "loss": _at_most(0.03)},
    ),
    "simulate": Bench(
        "simulate",
        "wall time of 1,000 servers and 50 trainers over 24 simulated hours, one core",
        {"wall_s": _at_most(300)},
    ),
}

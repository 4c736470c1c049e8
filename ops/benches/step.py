"""Cost of a speculative step on SGLang and one CPU thread.

Two processes, each with one SGLang scheduler and one thread: plain decoding, and EAGLE-3 with 3 drafts (a draft of
random weights: a step costs the same whatever it accepts). They step in turn, a few steps each, so that the noise of a
shared machine falls on both. A ratio is the median over turns of (median speculative step / median plain step) of
processor time; `wall_*` are the same of the wall clock. The linear layers of the target are timed in this process, in
turn with the plain steps at batch 1.

ratio_bN is also the accept length from which speculation pays at batch N.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from demo_data.model import fetch
from demo_data.packages import cache_dir

from benches.random_draft import write_random_draft
from benches.settings import Settings
from tide_daemon.engine.sglang.launch_env import launch, multiplies_bf16

_OPS = Path(__file__).resolve().parents[1]


class StepProcess:
    """The parent's side of benches.step_process."""

    def __init__(self, kind: str, target_dir: Path, draft_dir: Path, dtype: str, log: Path) -> None:
        environment = dict(launch(["--device", "cpu"]).environment)
        environment["PYTHONPATH"] = os.pathsep.join([str(_OPS), environment["PYTHONPATH"]])
        self._kind, self._log_path = kind, log
        with log.open("w") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benches.step_process", kind, str(target_dir), str(draft_dir), dtype],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
                text=True,
            )

    def answer(self) -> dict[str, Any]:
        """Wait for the answer to the last command; the first is that the scheduler is ready.

        Raises:
            RuntimeError: the process died; the message ends with its last words.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            words = "\n".join(self._log_path.read_text().splitlines()[-15:])
            raise RuntimeError(f"the {self._kind} process ended:\n{words}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def command(self, **command: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self.answer()

    def __enter__(self) -> "StepProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()


class LinearLayers:
    """The matrices of a Llama target as SGLang fuses them, random, applied to one row by F.linear."""

    def __init__(self, config: dict[str, Any], dtype: torch.dtype) -> None:
        hidden, inter = config["hidden_size"], config["intermediate_size"]
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        head_dim = config.get("head_dim") or hidden // heads
        layer = [
            ((heads + 2 * kv_heads) * head_dim, hidden),  # qkv
            (hidden, heads * head_dim),  # o
            (2 * inter, hidden),  # gate and up
            (hidden, inter),  # down
        ]
        shapes = [*layer * config["num_hidden_layers"], (config["vocab_size"], hidden)]
        self._weights = [torch.randn(shape).mul_(0.02).to(dtype) for shape in shapes]
        self._rows = [torch.randn(1, shape[1]).to(dtype) for shape in shapes]

    @torch.inference_mode()
    def pass_s(self) -> tuple[float, float]:
        """Processor and wall seconds of one pass through all of them."""
        cpu, wall = time.thread_time(), time.perf_counter()
        for row, weight in zip(self._rows, self._weights, strict=True):
            torch.nn.functional.linear(row, weight)
        return time.thread_time() - cpu, time.perf_counter() - wall


def run(settings: Settings) -> dict[str, float]:
    target_dir = Path(settings.text("target", "")) if "target" in settings.given else fetch(cache_dir())
    turns, per_turn = settings.integer("turns", 15), settings.integer("steps_per_turn", 4)
    prompt = settings.integer("prompt_tokens", 150)
    dtype = settings.text("dtype", "bfloat16" if multiplies_bf16() else "float32")
    torch.set_num_threads(1)
    draft_dir = write_random_draft(target_dir, settings.work_dir / "draft")
    config = json.loads((target_dir / "config.json").read_text())
    figures: dict[str, float] = {}
    with (
        StepProcess("plain", target_dir, draft_dir, dtype, settings.work_dir / "plain.log") as plain,
        StepProcess("spec", target_dir, draft_dir, dtype, settings.work_dir / "spec.log") as spec,
    ):
        plain.answer(), spec.answer()
        for batch in (1, 4, 8):
            linear = LinearLayers(config, getattr(torch, dtype)) if batch == 1 else None
            figures |= _measure(plain, spec, linear, batch, turns, per_turn, prompt)
            print(", ".join(f"{name} {value:.3g}" for name, value in figures.items()), file=sys.stderr)
    return figures


def _measure(
    plain: StepProcess,
    spec: StepProcess,
    linear: LinearLayers | None,
    batch: int,
    turns: int,
    per_turn: int,
    prompt: int,
) -> dict[str, float]:
    """Step both in turn. Accepted drafts make requests shorter-lived, so there is room for all of them."""
    tokens = (turns + 1) * per_turn * 5
    for process in (plain, spec):
        process.command(batch=batch, prompt=prompt, tokens=tokens)
        process.command(steps=per_turn)
    times: dict[str, list[tuple[float, float, float]]] = {"cpu_s": [], "wall_s": []}
    for _ in range(turns):
        plain_steps, spec_steps = plain.command(steps=per_turn), spec.command(steps=per_turn)
        passes = [linear.pass_s() for _ in range(per_turn)] if linear is not None else []
        for index, (clock, rows) in enumerate(times.items()):
            passed = statistics.median(one[index] for one in passes) if passes else 0.0
            rows.append((statistics.median(plain_steps[clock]), statistics.median(spec_steps[clock]), passed))
    for process in (plain, spec):
        process.command(drain=True)
    figures = {}
    for prefix, clock in (("", "cpu_s"), ("wall_", "wall_s")):
        rows = times[clock]
        figures[f"{prefix}ratio_b{batch}"] = _median(spec_s / plain_s for plain_s, spec_s, _ in rows)
        figures[f"{prefix}plain_ms_b{batch}"] = 1e3 * _median(plain_s for plain_s, _, _ in rows)
        figures[f"{prefix}spec_ms_b{batch}"] = 1e3 * _median(spec_s for _, spec_s, _ in rows)
        if linear is not None:
            figures[f"{prefix}plain_over_linear_b1"] = _median(plain_s / passed for plain_s, _, passed in rows)
            figures[f"{prefix}linear_ms_b1"] = 1e3 * _median(passed for _, _, passed in rows)
    return figures


def _median(values: Sequence[float] | Any) -> float:
    return statistics.median(values)

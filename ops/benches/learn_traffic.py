"""Requests of two workloads, answered by the target, as the chunks that a server node would publish.

Made once (some ten minutes on one core) and kept in the cache folder; a change of the target, the prompts
or the settings makes them anew. Plain arrays in .npy files, no pickle.
"""

import functools
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from benches.plain_target import Answer, PlainTarget, answer_all
from tide_daemon.allocator import give_memory_back
from tide_daemon.trainer.compute import choose
from tide_daemon.wire.records import HiddenChunk, TargetSpec

FORMAT = 1
CAPTURED_AT = 1_700_000_000.0


@dataclass(frozen=True, slots=True)
class Workload:
    """Prompts of one traffic class as token ids, and how many tokens an answer may have."""

    name: str
    prompts: list[list[int]]
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Request:
    """One answered request: its chunk, and its words."""

    chunk: HiddenChunk
    prompt: list[int]
    answer: list[int]


def render(tokenizer: Tokenizer, texts: Sequence[str], max_prompt_tokens: int) -> list[list[int]]:
    """Token ids of single-turn chats as the model's template writes them, those that are short enough."""
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    found = []
    for text in texts:
        turn = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        ids = tokenizer.encode(turn, add_special_tokens=False).ids
        if len(ids) <= max_prompt_tokens:
            found.append(ids)
    return found


def shuffled(prompts: list[list[int]], seed: int = 0) -> list[list[int]]:
    """The prompts in an order that depends on the seed alone."""
    result = list(prompts)
    random.Random(seed).shuffle(result)
    return result


def answered(
    target_dir: Path, spec: TargetSpec, topk: int, workload: Workload, num_tokens: int, cache: Path
) -> list[Request]:
    """Requests whose answers have `num_tokens` tokens together, from the cache if they are there.

    Prompts are taken in order until enough has been said; ValueError when there are too few.
    """
    dtype = choose("cpu").dtype
    asked = [_digest(target_dir), str(dtype), spec.aux_layer_ids, topk, workload.max_tokens, num_tokens]
    key = json.dumps([FORMAT, *asked, workload.prompts])
    folder = cache / f"learn-{workload.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if not (folder / "complete").exists():
        # A process of its own: rows that are kept for long and logits of megabytes that are not leave a heap in pieces
        # (23 GB after 70,000 tokens, seen on 2026-11-26), and training is measured in this one.
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, spawn, give_memory_back) as process:
            process.submit(_make, folder, target_dir, dtype, spec, topk, workload, num_tokens).result()
    return _read(folder, spec, workload.name)


def _make(
    folder: Path,
    target_dir: Path,
    dtype: torch.dtype,
    spec: TargetSpec,
    topk: int,
    workload: Workload,
    num_tokens: int,
) -> None:
    target = PlainTarget(target_dir, spec.aux_layer_ids, topk, dtype)
    answers: list[Answer] = []
    said = 0
    while said < num_tokens:
        # Most answers reach the limit: a first lot of about as many prompts as are needed, then what is left.
        lot = workload.prompts[len(answers) :][: (num_tokens - said) // workload.max_tokens + 16]
        if not lot:
            raise ValueError(
                f"the {workload.name} prompts are answered with {said} tokens only, {num_tokens} asked for"
            )
        tell = functools.partial(_tell, workload.name, len(lot))
        answers += answer_all(target, lot, workload.max_tokens, tell)
        said = sum(len(answer.answer) for answer in answers)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        np.save(unfinished / "aux.npy", torch.cat([row for a in answers for row in a.aux]).view(torch.int16).numpy())
        np.save(unfinished / "topk_ids.npy", torch.stack([row for a in answers for row in a.topk_ids]).numpy())
        np.save(
            unfinished / "topk_logprobs.npy", torch.stack([row for a in answers for row in a.topk_logprobs]).numpy()
        )
        (unfinished / "tokens.json").write_text(json.dumps([[a.prompt, a.answer] for a in answers]))
        (unfinished / "complete").touch()
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _read(folder: Path, spec: TargetSpec, workload: str) -> list[Request]:
    aux = np.load(folder / "aux.npy", mmap_mode="r").view(np.uint16)
    ids, logprobs = np.load(folder / "topk_ids.npy"), np.load(folder / "topk_logprobs.npy")
    requests: list[Request] = []
    first_row = first_top = 0
    for prompt, answer in json.loads((folder / "tokens.json").read_text()):
        rows = len(prompt) + len(answer) - 1
        top = slice(first_top, first_top + len(answer))
        # No candidates are captured at prompt rows but the last.
        absent = ((len(prompt) - 1, 0), (0, 0))
        chunk = HiddenChunk(
            spec=spec,
            node="bench",
            request_id=hashlib.sha256(f"{workload}/{len(requests)}".encode()).hexdigest()[:32],
            workload=workload,
            chunk_index=0,
            last=True,
            incomplete=False,
            first_position=0,
            captured_at=CAPTURED_AT + len(requests),
            draft_version=0,
            codec="bf16",
            token_ids=np.array([*prompt, *answer[:-1]], dtype=np.int32),
            loss_mask=(np.arange(rows) >= len(prompt)).astype(np.uint8),
            next_token_id=answer[-1],
            topk_ids=np.pad(ids[top], absent, constant_values=-1),
            topk_logprobs=np.pad(logprobs[top], absent),
            aux=aux[first_row : first_row + rows],
        )
        requests.append(Request(chunk, prompt, answer))
        first_row, first_top = first_row + rows, top.stop
    return requests


def _digest(target_dir: Path) -> str:
    total = hashlib.sha256()
    for name in ("config.json", "model.safetensors"):
        with (target_dir / name).open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def _tell(workload: str, of: int, done: int) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        os._exit(1)  # killed, it cannot end us, and we would go on for an hour
    print(f"{workload}: {done} of {of} answered", file=sys.stderr)

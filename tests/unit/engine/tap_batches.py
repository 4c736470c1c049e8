"""Simulated batches for tests of the tap: requests as the tap sees them, and steps that add tokens to them."""

from array import array
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from tide_daemon.engine.ring import Rows
from tide_daemon.engine.sglang.staged import Staged
from tide_daemon.engine.sglang.tap import Tap

VOCAB = 300
WIDTH = 4
TOPK = 2


class Params(SimpleNamespace):
    def __init__(self, **more: Any) -> None:
        plain = {"custom_params": None, "frequency_penalty": 0.0, "presence_penalty": 0.0, "repetition_penalty": 1.0}
        super().__init__(**(plain | {"min_new_tokens": 0, "logit_bias": None} | more))


class Req:
    """What the tap reads of SGLang's Req."""

    def __init__(self, prompt: list[int], rid: str = "r", **params: Any) -> None:
        self.rid = rid
        self.origin_input_ids = array("q", prompt)
        self.output_ids = array("q")
        self.finished_len: int | None = None
        self.sampling_params = Params(**params)
        self.multimodal_inputs = self.input_embeds = self.grammar = self.custom_logit_processor = None
        self.is_finished = False

    def finished(self) -> bool:
        return self.is_finished


def states(rows: int, start: int = 0) -> torch.Tensor:
    """Row r holds the number start + r, exact in bf16."""
    return (torch.arange(start, start + rows).float()[:, None]).expand(rows, WIDTH).contiguous()


def values(rows: Rows) -> list[int]:
    """What `states` put there."""
    return torch.from_numpy(rows["aux"].view(np.int16)).view(torch.bfloat16)[:, 0].int().tolist()


def prefill(tap: Tap, reqs: list[Req], prefix: list[int], extend: list[int], first: list[int | None]) -> None:
    """A prefill batch; each request gets its first token, None for a chunk in the middle."""
    rows = sum(extend)
    logits = torch.zeros(len(reqs), VOCAB)
    for index, (req, token) in enumerate(zip(reqs, first, strict=True)):
        if token is not None:
            req.output_ids.append(token)
            logits[index, token] = 5.0
    tap.commit_prefill(reqs, Staged(states(rows), logits, 0, prefix, extend))


def verify(tap: Tap, reqs: list[Req], accepted: list[list[int]], width: int, finish: tuple[int, ...] = ()) -> None:
    """A verification of `width` rows a request that added these tokens."""
    before = [len(req.output_ids) for req in reqs]
    logits = torch.zeros(len(reqs) * width, VOCAB)
    for index, (req, tokens) in enumerate(zip(reqs, accepted, strict=True)):
        for row, token in enumerate(tokens):
            logits[index * width + row, token] = 5.0
        req.output_ids.extend(tokens)
        req.is_finished = index in finish
    tap.commit_verify(reqs, Staged(states(len(reqs) * width, 100), logits, width, [], []), before)


def decode(tap: Tap, reqs: list[Req], tokens: list[int], start: int, finish: tuple[int, ...] = ()) -> None:
    """A step of plain decoding, staged as the runtime does; its states are start, start + 1, ..."""
    logits = torch.zeros(len(reqs), VOCAB)
    logits[torch.arange(len(reqs)), torch.tensor(tokens)] = 5.0
    staged = tap.stage(reqs, Staged(states(len(reqs), start), logits, 1, [], []))
    before = [len(req.output_ids) for req in reqs]
    for index, (req, token) in enumerate(zip(reqs, tokens, strict=True)):
        req.output_ids.append(token)
        req.is_finished = index in finish
    tap.commit_verify(reqs, staged, before)

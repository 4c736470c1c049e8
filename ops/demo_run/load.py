"""Sends chat requests to an OpenAI endpoint, a fixed number at a time, and counts what comes back.

A slice is a list of prompts replayed in a closed loop. The same slice against two servers has the
same greedy output, so the ratio of their token rates is the ratio of their times.

Answers may be of different lengths (`LENGTHS`). Those of one length end in the same step, so the prompts behind them
are computed together and no decoding waits for them: plain decoding gains by it; speculation, whose
answers end at different times, does not, and neither does real traffic. See ops/decisions/0052.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle

import aiohttp
import orjson


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request: its text and the workload that it belongs to."""

    text: str
    workload: str


@dataclass(frozen=True, slots=True)
class SliceResult:
    """What one slice took. `num_failed` requests got no complete answer and are not in the counts."""

    num_requests: int
    num_failed: int
    num_tokens: int
    wall_s: float

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.wall_s if self.wall_s > 0 else 0.0


OnToken = Callable[[int], None]

LENGTHS = (96, 128, 80, 112, 64)
"""How long answers may get, in 96ths of `max_tokens`, in turn; the mean of five is 96. No usual batch size
is a multiple of five, so a batch does not fall into step."""


async def stream_chat(
    session: aiohttp.ClientSession,
    url: str,
    prompt: Prompt,
    max_tokens: int,
    *,
    temperature: float = 0.0,
) -> int:
    """Number of completion tokens of one streamed chat request.

    Raises:
        aiohttp.ClientError: the connection or the answer failed.
        TimeoutError: the session's own limit.
        ValueError: the stream ended without a usage record, so the answer is not complete.
    """
    body = {
        "model": "default",
        "messages": [{"role": "user", "content": prompt.text}],
        "max_tokens": max_tokens,
        "temperature": temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    num_tokens = None
    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.content:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            usage = orjson.loads(line[6:]).get("usage")
            if usage:
                num_tokens = int(usage["completion_tokens"])
    if num_tokens is None:
        raise ValueError("the stream ended without its usage record")
    return num_tokens


async def run_slice(
    session: aiohttp.ClientSession,
    url: str,
    prompts: Sequence[Prompt],
    concurrency: int,
    max_tokens: int,
    on_request: OnToken | None = None,
) -> SliceResult:
    """Replay `prompts`, `concurrency` at a time; `on_request` hears each answer's number of tokens.

    Args:
        max_tokens: an answer's limit, in the mean of five prompts; each one's depends on its place in `prompts` alone.
    """
    limits = (max(1, max_tokens * length // 96) for length in cycle(LENGTHS))
    queue = list(zip(prompts, limits, strict=False))[::-1]
    tokens = failed = 0
    started = time.monotonic()

    async def client() -> None:
        nonlocal tokens, failed
        while queue:
            prompt, limit = queue.pop()
            try:
                answered = await stream_chat(session, url, prompt, limit)
            except (aiohttp.ClientError, TimeoutError, ValueError):
                failed += 1
                # A server that is being restarted refuses at once: do not burn through the slice.
                await asyncio.sleep(0.5)
                continue
            tokens += answered
            if on_request is not None:
                on_request(answered)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(prompts))):
            group.create_task(client())
    return SliceResult(len(prompts) - failed, failed, tokens, time.monotonic() - started)

"""Clients of the OpenAI endpoint that go on through every fault: the official package, one streaming, one not.

Nothing is retried: what the endpoint does to a request is what is recorded. Answers are greedy and short, and
the prompts come round again, so that an answer can be held against the first one to the same prompt.
"""

import asyncio
import contextlib
import itertools
import time
from types import TracebackType
from typing import Self

import httpx
import openai

from fault_runs.latency import Request

PROMPTS = tuple(
    f"{question} Answer in one sentence."
    for question in (
        "What is the capital of France?",
        "Why is the sky blue?",
        "Count from one to ten.",
        "Name three primary colours.",
        "What does a compiler do?",
        "How do bees make honey?",
        "What is 12 times 12?",
        "Who wrote Hamlet?",
    )
)
NUM_TOKENS = 12
_AFTER_ERROR_S = 0.5
_TIMEOUT_S = 120.0


class Clients:
    """Runs while entered. `requests` grows."""

    def __init__(self, url: str, pause_s: float = 0.1) -> None:
        self.requests: list[Request] = []
        self._pause_s = pause_s
        self._client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=_TIMEOUT_S, max_retries=0)
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._go_on(streamed)) for streamed in (False, True)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(openai.OpenAIError):
            await self._client.close()

    def check(self) -> None:
        """Raises what ended one of the clients, which go on for ever."""
        for task in self._tasks:
            if task.done():
                task.result()

    async def have_begun(self) -> bool:
        """Whether both have had an answer."""
        return {request.streamed for request in self.requests if not request.error} == {True, False}

    async def _go_on(self, streamed: bool) -> None:
        for number in itertools.count(int(streamed)):
            request = await self.one(number % len(PROMPTS), streamed)
            self.requests.append(request)
            await asyncio.sleep(_AFTER_ERROR_S if request.error else self._pause_s)

    async def one(self, prompt: int, streamed: bool, num_tokens: int = NUM_TOKENS) -> Request:
        """One request; never raises for what the endpoint does."""
        started, text, error = time.monotonic(), "", ""
        try:
            text = await (self._stream if streamed else self._whole)(PROMPTS[prompt], num_tokens)
        except (openai.OpenAIError, httpx.HTTPError, OSError) as failure:  # a stream that breaks off is httpx's error
            error = f"{type(failure).__name__}: {failure}"[:300]
        return Request(started, time.monotonic(), streamed, prompt, text, error)

    async def _whole(self, prompt: str, num_tokens: int) -> str:
        answer = await self._client.chat.completions.create(
            model="default", messages=[{"role": "user", "content": prompt}], max_tokens=num_tokens, temperature=0
        )
        return answer.choices[0].message.content or ""

    async def _stream(self, prompt: str, num_tokens: int) -> str:
        pieces, finished = [], False
        async with await self._client.chat.completions.create(
            model="default",
            messages=[{"role": "user", "content": prompt}],
            max_tokens=num_tokens,
            temperature=0,
            stream=True,
        ) as stream:
            async for piece in stream:
                for choice in piece.choices:
                    pieces.append(choice.delta.content or "")
                    finished |= choice.finish_reason is not None
        if not finished:
            raise openai.OpenAIError("the stream ended before the answer did")
        return "".join(pieces)

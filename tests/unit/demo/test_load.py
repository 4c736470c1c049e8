import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from demo_run.load import Prompt, run_slice
from demo_run.phase_run import slices_of
from demo_run.phases import PHASES, budgets_s

PROMPTS = [Prompt(f"question {number}", "chat") for number in range(6)]


class Endpoint:
    """An OpenAI endpoint that answers seven tokens, and fails where it is told to."""

    def __init__(self) -> None:
        self.cut: set[str] = set()
        self.limits: dict[str, int] = {}
        self.running = self.most_running = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        text = body["messages"][0]["content"]
        self.limits[text] = body["max_tokens"]
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(0.01)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'data: {"choices": [{"delta": {"content": "a"}}], "usage": null}\n\n')
        if text not in self.cut:
            await response.write(b'data: {"choices": [], "usage": {"completion_tokens": 7}}\n\ndata: [DONE]\n\n')
        self.running -= 1
        return response


@pytest.fixture
def endpoint() -> Endpoint:
    return Endpoint()


@pytest.fixture
async def url(endpoint: Endpoint) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", endpoint.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_tokens_are_those_of_the_usage_record(url: str, endpoint: Endpoint) -> None:
    """Tokens are counted by the server's own usage record, and no more requests run than asked for."""
    async with aiohttp.ClientSession() as session:
        result = await run_slice(session, url, PROMPTS, 2, 32)
    assert (result.num_requests, result.num_failed, result.num_tokens) == (6, 0, 42)
    assert endpoint.most_running <= 2


async def test_answer_that_breaks_off_is_a_failure(url: str, endpoint: Endpoint) -> None:
    """A stream without its usage record counts as failed, not as a short answer."""
    endpoint.cut = {"question 3"}
    async with aiohttp.ClientSession() as session:
        result = await run_slice(session, url, PROMPTS, 3, 32)
    assert (result.num_requests, result.num_failed, result.num_tokens) == (5, 1, 35)


async def test_answers_of_a_slice_may_differ_in_length(url: str, endpoint: Endpoint) -> None:
    """A prompt's limit is a matter of its place alone, however many run at once; the mean is what was asked for."""
    async with aiohttp.ClientSession() as session:
        await run_slice(session, url, PROMPTS[:5], 1, 48)
        one_at_a_time = dict(endpoint.limits)
        await run_slice(session, url, PROMPTS[:5], 3, 48)
    assert endpoint.limits == one_at_a_time
    assert len(set(one_at_a_time.values())) == 5
    assert sum(one_at_a_time.values()) == 5 * 48


def test_slices_begin_again_after_the_last_prompt() -> None:
    """A phase that outlives its prompts goes round."""
    found = slices_of(PROMPTS, 4)
    assert [p.text[-1] for p in next(found)] == ["0", "1", "2", "3"]
    assert [p.text[-1] for p in next(found)] == ["4", "5", "0", "1"]


def test_budgets_fill_the_time() -> None:
    """The phases share the whole time."""
    assert sum(budgets_s(900.0)) == pytest.approx(900.0)
    assert len(budgets_s(900.0)) == len(PHASES)

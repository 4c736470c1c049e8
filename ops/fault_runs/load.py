"""Load that is too much, too long, or goes away."""

import asyncio
import time

import aiohttp

from fault_runs.clients import PROMPTS
from fault_runs.run import Inflicting

CONTEXT_TOKENS = 2048
"""--context-length of the demonstration's SGLang."""


async def small_requests_10000(run: Inflicting) -> None:
    await _many(run, 10_000, 32, 2)


async def requests_500_at_once(run: Inflicting) -> None:
    await _many(run, 500, 500, 4)


async def prompts_at_the_context_limit(run: Inflicting) -> None:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session:
        for length, fits in ((CONTEXT_TOKENS - 16, True), (CONTEXT_TOKENS, False), (4 * CONTEXT_TOKENS, False)):
            body = {"input_ids": [100 + i % 1000 for i in range(length)], "sampling_params": {"max_new_tokens": 4}}
            async with session.post(f"{run.stage.openai_url}/generate", json=body) as response:
                text = await response.text()
                run.notes[f"{length} tokens"] = f"{response.status}: {text[:160]}"
                run.check(f"a prompt of {length} tokens is {'answered' if fits else 'refused'}",
                          (response.status == 200) == fits)  # fmt: skip


async def clients_vanish_mid_stream(run: Inflicting) -> None:
    async def vanish(number: int) -> bool:
        """Whether the answer was cut off before its end."""
        body = {
            "model": "default",
            "messages": [{"role": "user", "content": f"{PROMPTS[number % len(PROMPTS)]} ({number})"}],
            "max_tokens": 200,
            "stream": True,
        }
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{run.stage.openai_url}/v1/chat/completions", json=body) as response,
        ):
            pieces = 0
            async for line in response.content:
                pieces += line.startswith(b"data: ")
                if pieces > 2:
                    assert response.connection is not None and response.connection.transport is not None
                    response.connection.transport.abort()
                    return True
        return False

    results = await asyncio.gather(*(vanish(number) for number in range(50)), return_exceptions=True)
    others = [each for each in results if each is not True]
    run.check(f"{len(others)} of 50 did not vanish: {others[:1]}", not others)
    run.over()

    async def quiet() -> bool:
        return bool((await run.stage.role("server"))["num_running"] <= 2)

    await run.until("their requests end", quiet, 30.0)


async def trainer_slow(run: Inflicting) -> None:
    stage = run.stage
    dropped = (await stage.role("server"))["chunks_dropped"]
    stage.freeze("trainer")
    run.expect("the trainer is silent", "trainer", lambda status: not status, lambda metrics: not metrics)
    run.expect(
        "the controller misses it",
        "controller",
        lambda status: status["roles"]["controller"]["snapshot"]["num_trainers"] == 0,
        lambda metrics: metrics["tide_trainers"] == 0,
    )
    # What real traffic would fill in hours, in seconds: the stream's limit is lowered to what it holds by now.
    async with stage.bus() as bus:
        info = await bus.connection.api("STREAM.INFO.TIDE_HIDDEN")
        small = {**info["config"], "max_bytes": 1 << 20}
        run.check("the limit is lowered", "error" not in await bus.connection.api("STREAM.UPDATE.TIDE_HIDDEN", small))
        first = info["state"]["first_seq"]

        async def overrun() -> bool:
            return bool((await bus.connection.api("STREAM.INFO.TIDE_HIDDEN"))["state"]["first_seq"] > first + 5)

        await asyncio.sleep(20.0)
        await run.until("the oldest samples go", overrun, 60.0)
        await bus.connection.api("STREAM.UPDATE.TIDE_HIDDEN", info["config"])
    run.check("the server drops nothing", (await stage.role("server"))["chunks_dropped"] == dropped)
    stage.thaw("trainer")
    run.over()


async def trainer_away_for_an_hour(run: Inflicting) -> None:
    stage = run.stage
    run.expect_restart("trainer")
    await stage.end("trainer")
    await asyncio.sleep(run.away_s)
    async with stage.bus() as bus:
        state = (await bus.connection.api("STREAM.INFO.TIDE_HIDDEN"))["state"]
    run.notes["seconds_away"] = run.away_s
    run.notes["stream_bytes"] = state["bytes"]
    run.check("the stream keeps its limit", state["bytes"] <= 64 << 20)
    await stage.start_role("trainer")
    run.over()


async def _many(run: Inflicting, count: int, at_once: int, num_tokens: int) -> None:
    """Requests beside those of the two clients, each answered or not."""
    assert run.clients is not None
    clients, turn, failed = run.clients, asyncio.Semaphore(at_once), []
    began = time.monotonic()

    async def one(number: int) -> None:
        async with turn:
            request = await clients.one(number % len(PROMPTS), number % 2 == 1, num_tokens)
            if request.error:
                failed.append(request.error)

    await asyncio.gather(*(one(number) for number in range(count)))
    run.notes["seconds"] = round(time.monotonic() - began, 1)
    run.notes["failed"] = failed[:3]
    run.check(f"{len(failed)} of {count} requests failed", not failed)
    run.over()

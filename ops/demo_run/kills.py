"""`ops/demo --kill`: kill -9 of every process in turn while the demonstration plays, and what came of it.

Nobody helps: what comes back was started again by what supervises it (the roles by the demonstration, as systemd
would; SGLang by its daemon; nats-server by the demonstration). A client of its own, the official `openai` package,
asks all the time, streaming and not. At the end the journal is looked through for anything done twice.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field

import aiohttp
import openai

from demo_run.stack import MODEL, engine_pid
from demo_run.stage import Stage
from demo_run.waiting import StartError, poll
from tide_daemon.errors import WireError
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.records import Decision

ORDER = ("trainer", "controller", "nats-server", "server", "SGLang")
FIRST_AT, LAST_AT = 0.3, 0.85
"""Of the whole time: there is a draft by then, and time for SGLang to load its model again."""
BACK_WITHIN_S = 300.0
ASK_EVERY_S = 3.0
NEVER = -1.0


@dataclass(slots=True)
class Kill:
    """One kill: seconds after the beginning, until everything was ready again (NEVER: it was not), clients' errors."""

    name: str
    at_s: float
    recovery_s: float = NEVER
    client_errors: int = 0


@dataclass(slots=True)
class Killed:
    """All of it. `twice` names what was decided or judged twice, and must be empty."""

    kills: list[Kill] = field(default_factory=list)
    answered: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)

    def to_map(self) -> dict[str, object]:
        """For the JSON file."""
        return {
            "kills": [asdict(kill) for kill in self.kills],
            "openai_answered": dict(self.answered),
            "openai_errors": self.errors,
            "done_twice": self.twice,
        }


def moments(total_s: float, names: Sequence[str] = ORDER) -> list[tuple[float, str]]:
    """(seconds after the beginning, what is killed), spread evenly."""
    step = (LAST_AT - FIRST_AT) / max(1, len(names) - 1)
    return [(total_s * (FIRST_AT + index * step), name) for index, name in enumerate(names)]


def done_twice(decisions: Iterable[Decision]) -> list[str]:
    """What a journal shows to have happened twice or out of order, in words."""
    found, last = [], (0, 0)
    final: Counter[int] = Counter()
    generations: Counter[tuple[str, int]] = Counter()
    for decision in decisions:
        place = (decision.fencing_token, decision.sequence)
        if place <= last:
            found.append(f"decision {place} comes after {last}")
        last = max(last, place)
        for item in decision.instructions:
            # A draft of the pool is judged anew each time its workload comes back.
            judged = item["instruction"] == "judged" and not item.get("from_pool")
            if judged and item["verdict"] in ("promote", "reject"):
                final[item["version"]] += 1
            if item["instruction"] == "set_server":
                generations[item["node"], item["generation"]] += 1
    found += [f"version {version} was judged {count} times" for version, count in final.items() if count > 1]
    found += [
        f"{node}: generation {number} stands for {n} states" for (node, number), n in generations.items() if n > 1
    ]
    return found


class Killer:
    """Runs beside the phases; `killed` grows as it goes."""

    def __init__(self, stage: Stage, total_s: float, say: Callable[[str], None]) -> None:
        self.killed = Killed()
        self._stage = stage
        self._total_s = total_s
        self._say = say

    async def run(self) -> None:
        """Kill one after the other, then go on asking until cancelled."""
        started = time.monotonic()
        asking = asyncio.create_task(self._ask())
        try:
            for at_s, name in moments(self._total_s):
                await asyncio.sleep(max(0.0, at_s - (time.monotonic() - started)))
                kill = Kill(name, time.monotonic() - started)
                self.killed.kills.append(kill)
                await self._kill(kill)
            await asyncio.Event().wait()
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def look_through_journal(self) -> None:
        """Fill in `twice` from the journal as the broker holds it."""
        subject, decisions = subjects.journal(MODEL), list[Decision]()
        newest = await self._stage.bus.last(subject)
        if newest is None:
            return
        async for message in self._stage.bus.tail(subject, since="all"):
            with contextlib.suppress(WireError):
                record = envelope.decode(message.data)
                if isinstance(record, Decision):
                    decisions.append(record)
            if message.sequence >= newest.sequence:
                break
        self.killed.twice = done_twice(decisions)

    async def _kill(self, kill: Kill) -> None:
        before, errors = self._pid(kill.name), len(self.killed.errors)
        self._say(f"kill -9 of {kill.name} (process {before})")
        os.kill(before, signal.SIGKILL)
        killed_at = time.monotonic()

        async def is_back() -> bool:
            return self._pid(kill.name) not in (0, before) and await self._all_ready()

        try:
            await poll(is_back, BACK_WITHIN_S, kill.name)
            kill.recovery_s = time.monotonic() - killed_at
            self._say(f"{kill.name} is back: everything is ready again after {kill.recovery_s:.0f} s")
        except StartError as error:
            self._say(str(error))
        kill.client_errors = len(self.killed.errors) - errors

    def _pid(self, name: str) -> int:
        if name == "nats-server":
            return self._stage.nats.pid or 0
        if name == "SGLang":
            return engine_pid(self._stage.state)
        child = self._stage.roles[name]
        return child.popen.pid if child.running else 0

    async def _all_ready(self) -> bool:
        for url in self._stage.system.status_urls.values():
            try:
                async with self._stage.session.get(f"{url}/readyz", timeout=aiohttp.ClientTimeout(5)) as response:
                    if response.status != 200:
                        return False
            except (aiohttp.ClientError, TimeoutError):
                return False
        return True

    async def _ask(self) -> None:
        async with openai.AsyncOpenAI(
            base_url=f"{self._stage.system.openai_url}/v1", api_key="none", timeout=120, max_retries=0
        ) as client:
            streams = False
            while True:
                kind = "streamed" if streams else "whole"
                try:
                    await _one(client, streams)
                    self.killed.answered[kind] += 1
                except (openai.OpenAIError, OSError, ValueError) as error:
                    self.killed.errors.append(f"{kind}: {type(error).__name__}")
                streams = not streams
                await asyncio.sleep(ASK_EVERY_S)


async def _one(client: openai.AsyncOpenAI, streams: bool) -> None:
    """One greedy answer; ValueError if it is not complete."""
    messages: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "Count to three."}]
    if not streams:
        answer = await client.chat.completions.create(model="default", messages=messages, max_tokens=8, temperature=0)
        complete = bool(answer.choices and answer.choices[0].finish_reason)
    else:
        complete = False
        async for piece in await client.chat.completions.create(
            model="default", messages=messages, max_tokens=8, temperature=0, stream=True
        ):
            complete = complete or any(choice.finish_reason for choice in piece.choices)
    if not complete:
        raise ValueError("the answer broke off")

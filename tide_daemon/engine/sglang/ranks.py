"""Commands that every tensor-parallel rank must obey before the same batch.

They travel as numbers in SGLang's own /set_internal_state, whose scheduler hands them to all ranks in the
same iteration, between two batches (managers/io_struct.py, SetInternalStateReq: names to numbers):

    {"server_args": {"tide_swap": VERSION}}              apply what was staged under this version
    {"server_args": {"tide_steps": 0, "tide_steps_8": 3}}   replace the steps table: 3 steps up to batch 8

A swap is applied by all of them or by none: first each says whether it has that version staged (agree.py). SGLang
answers for rank 0 alone, and so for all.

Staging, reading back and everything else goes over each rank's own control channel. Not run on a GPU.
"""

from collections.abc import Mapping, Sequence

import aiohttp

from tide_daemon.errors import EngineError

SWAP = "tide_swap"
STEPS = "tide_steps"


def swap_args(version: int) -> dict[str, int]:
    """Arguments that swap."""
    return {SWAP: version}


def steps_args(table: Sequence[tuple[int, int]]) -> dict[str, int]:
    """Arguments that replace the steps table."""
    return {STEPS: 0} | {f"{STEPS}_{batch}": steps for batch, steps in table}


def is_ours(args: Mapping[str, float]) -> bool:
    """Whether a request is for the plug-in."""
    return SWAP in args or STEPS in args


def table_of(args: Mapping[str, float]) -> list[tuple[int, int]] | None:
    """The steps table in arguments, None when they hold none."""
    if STEPS not in args:
        return None
    prefix = f"{STEPS}_"
    return sorted((int(name.removeprefix(prefix)), int(args[name])) for name in args if name.startswith(prefix))


async def tell_every_rank(url: str, args: Mapping[str, int], timeout_s: float, key: str = "") -> None:
    """Send arguments to all ranks of the engine at `url`.

    Args:
        key: the engine's API key for such requests, "" for none; see start.py, admin_key.

    Raises:
        EngineError: no answer, or a rank refused.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
            session.post(f"{url}/set_internal_state", json={"server_args": dict(args)}) as response,
        ):
            updated = await response.json() if response.status == 200 else response.status
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise EngineError(f"SGLang did not take {dict(args)}: {error}") from error
    if not isinstance(updated, list) or not updated or not all(updated):
        raise EngineError(f"SGLang's ranks refused {dict(args)}: {updated}")

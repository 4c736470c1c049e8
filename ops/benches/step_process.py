"""A process of the `step` bench: one SGLang scheduler, driven a step at a time by commands on standard input.

    python -m benches.step_process plain|spec TARGET_DIR DRAFT_DIR DTYPE

Commands and answers are JSON, one a line: {"batch": B, "prompt": P, "tokens": N} fills a batch of B random prompts,
{"steps": N} runs N decode steps and answers {"cpu_s": [...], "wall_s": [...]}, {"drain": true} ends all requests.

The scheduler is SGLang's own, with its own event loop body; only the tokenizer and HTTP processes are left out. A step
is one turn of that loop: scheduling, drafting, verification or decoding, sampling, results. Both kinds run with the
CPU hooks of our plug-in and without its capture.
"""

import array
import itertools
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from sglang.srt.managers.io_struct import AbortReq, TokenizedGenerateReqInput
from sglang.srt.managers.scheduler import Scheduler, SpawnRanks, publish, spawn_world_rank
from sglang.srt.plugins.hook_registry import HookRegistry
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.server_args import PortArgs, prepare_server_args

from tide_daemon.engine.sglang import sampling
from tide_daemon.engine.sglang.cpu import speed
from tide_daemon.engine.sglang.launch_env import launch

NUM_DRAFTS = 3
_FLAGS = ["--device", "cpu", "--max-total-tokens", "8192", "--max-running-requests", "8", "--disable-radix-cache"]
_RESERVED_IDS = 100
_request_ids = itertools.count()


def start_scheduler(kind: str, target_dir: str, draft_dir: str, dtype: str) -> Scheduler:
    """Build a scheduler in this process, as run_scheduler_process of SGLang does for a rank."""
    arguments = [*_FLAGS, "--model-path", target_dir, "--dtype", dtype, "--log-level", "error"]
    if kind == "spec":
        arguments += ["--speculative-algorithm", "EAGLE3", "--speculative-draft-model-path", draft_dir]
        arguments += ["--speculative-num-steps", str(NUM_DRAFTS), "--speculative-eagle-topk", "1"]
        arguments += ["--speculative-num-draft-tokens", str(NUM_DRAFTS + 1)]
    speed.register(HookRegistry)
    sampling.register(HookRegistry)
    HookRegistry.apply_hooks()
    server_args = prepare_server_args(list(launch(arguments).arguments))
    ranks = SpawnRanks(world_rank=spawn_world_rank(server_args, tp_rank=0, pp_rank=0), dp_rank=None, gpu_id=0)
    publish(server_args, role="scheduler", ranks=ranks)
    return Scheduler(server_args, PortArgs.init_new(server_args))


def turn(scheduler: Scheduler) -> Any:
    """One turn of Scheduler.event_loop_normal. Returns the batch that ran, None when idle."""
    scheduler.ingest_requests()
    plan = scheduler.get_next_batch_to_run(running_batch=scheduler.running_batch, last_batch=scheduler.last_batch)
    scheduler.running_batch = plan.running_batch
    batch = plan.batch_to_run
    if batch:
        scheduler.process_batch_result(batch, scheduler.run_batch(batch))
    scheduler.last_batch = batch
    return batch


def fill(scheduler: Scheduler, batch_size: int, prompt_tokens: int, new_tokens: int) -> None:
    """Submit a batch of random prompts and run until all of it decodes.

    Raises:
        RuntimeError: the scheduler does not run the whole batch at once.
    """
    source = random.Random(batch_size)
    vocab_size = scheduler.model_config.vocab_size
    for _ in range(batch_size):
        ids = [source.randrange(_RESERVED_IDS, vocab_size) for _ in range(prompt_tokens)]
        scheduler.process_input_requests([_request(scheduler, ids, new_tokens)])
    for _ in range(4 * batch_size):
        turn(scheduler)
        if len(scheduler.running_batch.reqs) == batch_size and not scheduler.waiting_queue:
            return
    raise RuntimeError(f"the scheduler runs {len(scheduler.running_batch.reqs)} of {batch_size} requests")


def _request(scheduler: Scheduler, ids: list[int], new_tokens: int) -> TokenizedGenerateReqInput:
    sampling_params = SamplingParams(max_new_tokens=new_tokens, ignore_eos=True, temperature=0.0)
    sampling_params.normalize(scheduler.tokenizer)
    return TokenizedGenerateReqInput(
        rid=f"step-{next(_request_ids)}",
        input_text="",
        input_ids=array.array("q", ids),
        input_embeds=None,
        mm_inputs=None,
        token_type_ids=None,
        sampling_params=sampling_params,
        return_logprob=False,
        logprob_start_len=-1,
        top_logprobs_num=0,
        token_ids_logprob=None,
        stream=False,
    )


def drain(scheduler: Scheduler) -> None:
    scheduler.process_input_requests([AbortReq(abort_all=True)])
    while turn(scheduler):
        pass


def timed_steps(scheduler: Scheduler, num_steps: int) -> dict[str, list[float]]:
    """Seconds of each step, of this thread's processor time and of the wall clock."""
    cpu_s, wall_s = [], []
    for _ in range(num_steps):
        cpu, wall = time.thread_time(), time.perf_counter()
        turn(scheduler)
        cpu_s.append(time.thread_time() - cpu)
        wall_s.append(time.perf_counter() - wall)
    return {"cpu_s": cpu_s, "wall_s": wall_s}


def commands() -> Iterator[dict[str, Any]]:
    for line in sys.stdin:
        yield json.loads(line)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # SGLang prints on standard output
    torch.set_num_threads(1)
    scheduler = start_scheduler(*sys.argv[1:])
    print("{}", file=answers, flush=True)
    with torch.inference_mode():  # as Scheduler.event_loop_normal runs
        for command in commands():
            answer: dict[str, Any] = {}
            if "batch" in command:
                fill(scheduler, command["batch"], command["prompt"], command["tokens"])
            elif "steps" in command:
                answer = timed_steps(scheduler, command["steps"])
            else:
                drain(scheduler)
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()

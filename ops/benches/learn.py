"""Bench `learn`: how fast a draft learns its traffic, from nothing, with the trainer's own code.

Requests of ShareGPT (chat) and HumanEval (code) are answered greedily, at most 96 tokens each as in the
demonstration, and stored round by round in the trainer's sample store; the trainer's worker code then
selects, trains and writes candidates exactly as in a running system, except that nothing is served: each
round goes on from the last. The rows come from a plain torch forward of the target (plain_target.py), not
through SGLang's tap: the same rows, ten times sooner.

Accept lengths are those of held-out requests (other prompts), chain of 3, in serving order: each step
starts behind what the one before accepted, so it is what an engine would report. `every_position_*` is the
mean over all positions as chain starts, which is larger, for easy passages count more often.
`train_cpu_ms_per_token` is processor time of training, repeats included, over all captured rows (prompt
and response), since those are what is stored and learnt from; `.._response_token` over response tokens.
"""

import sys
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from demo_data import model, prompts
from demo_data.packages import cache_dir
from tokenizers import Tokenizer

from benches.learn_traffic import CAPTURED_AT, Request, Workload, answered, render, shuffled
from benches.ngram import walk
from benches.settings import Settings
from tide_daemon.draft import checkpoint
from tide_daemon.trainer.compute import choose
from tide_daemon.trainer.evaluate import SampleScore
from tide_daemon.trainer.frozen import load_frozen
from tide_daemon.trainer.jobs import Jobs, score_draft
from tide_daemon.trainer.join import join
from tide_daemon.trainer.rounds import Rounds
from tide_daemon.trainer.sample import Sample
from tide_daemon.trainer.segments import ChunkMeta
from tide_daemon.trainer.settings import TrainerSettings
from tide_daemon.trainer.store import SampleStore, StoreLimits
from tide_daemon.wire import envelope
from tide_daemon.wire.records import TargetSpec

NUM_STEPS = 3
CHAT_TOKENS, CODE_TOKENS = (20_000, 100_000), 8_000
NUM_HELDOUT = {"chat": 80, "code": 56}


@dataclass(slots=True)
class Cost:
    """Training cost so far: processor seconds of the rounds, captured rows and response tokens that they had."""

    cpu_s: float = 0.0
    rows: int = 0
    response_tokens: int = 0


class Learner:
    """A trainer without a bus: stores requests, runs rounds, holds the newest candidate."""

    def __init__(self, spec: TargetSpec, target_dir: Path, work_dir: Path, settings: TrainerSettings) -> None:
        self._spec, self._frozen = spec, load_frozen(target_dir, choose("cpu"))
        limits = StoreLimits(max_bytes=4 << 30, max_age_s=1e9, segment_bytes=64 << 20)
        self._store = SampleStore(work_dir / "store", limits, lambda: CAPTURED_AT)
        self._jobs = Jobs(settings, work_dir, target_dir)
        self._rounds = Rounds(work_dir)
        self._number = 0
        self.cost = Cost()

    def round(self, requests: Sequence[Request]) -> None:
        """Store the requests and train a round on them."""
        self._store.append([(_meta(request), envelope.encode(request.chunk)) for request in requests])
        self._number += 1
        command = {
            "do": "train",
            "job": self._number,
            "round": self._number,
            "spec": asdict(self._spec),
            "serving_dir": "",
            "serving_digest": "",
            "rolled_back": False,
        }
        self._jobs.run(command, threading.Event(), lambda _: None)
        trained = self._rounds.open(self._number).trained()
        assert trained is not None
        self._rounds.prune()
        self.cost.cpu_s += trained.cpu_s
        self.cost.rows += sum(len(request.chunk.token_ids) for request in requests)
        self.cost.response_tokens += sum(len(request.answer) for request in requests)

    @property
    def candidate_dir(self) -> Path:
        """Checkpoint folder of the newest candidate."""
        return self._rounds.open(self._number).candidate_dir

    def scores(self, samples: list[Sample]) -> list[SampleScore]:
        """The newest candidate on held-out samples."""
        held = checkpoint.load(self.candidate_dir)
        return score_draft(held, self._frozen, samples, NUM_STEPS)


def run(settings: Settings) -> dict[str, float]:
    target_dir = Path(settings.text("target", "")) if "target" in settings.given else model.fetch(cache_dir())
    layers = tuple(int(part) for part in settings.text("aux_layers", "0,15,28").split(","))
    per_round = settings.integer("round_tokens", 2_500)
    trainer = TrainerSettings(
        name="bench",
        model="smollm2",
        device="cpu",
        nice=0,
        heldout_share=0.0,
        replay_share=settings.number("replay_share", TrainerSettings("", "").replay_share),
        draft_vocab_size=settings.integer("draft_vocab_size", 4096),
        round_max_tokens=1 << 30,
        store_max_age_s=1e9,
        replay_max_age_s=1e10,
        seed=settings.integer("seed", 0),
        checkpoint_interval_s=1e9,
    )
    spec = bench_spec(target_dir, layers)
    chat, code = (_traffic(name, target_dir, spec, settings) for name in ("chat", "code"))
    heldout = {"chat": chat[: NUM_HELDOUT["chat"]], "code": code[: NUM_HELDOUT["code"]]}
    samples = {name: samples_of(requests) for name, requests in heldout.items()}
    learner = Learner(spec, target_dir, settings.work_dir, trainer)
    figures: dict[str, float] = {
        "accept_ngram_chat": _ngram(heldout["chat"]),
        "accept_ngram_humaneval": _ngram(heldout["code"]),
    }

    def measure(suffix: str, workload: str) -> None:
        scores = learner.scores(samples[workload])
        figures[f"accept_{suffix}"] = sum(s.walked_tokens for s in scores) / sum(s.walked_positions for s in scores)
        every = sum(s.num_tokens for s in scores) / sum(s.num_positions for s in scores)
        figures[f"every_position_{suffix}"] = every
        print(f"{suffix}: {figures[f'accept_{suffix}']:.3f}, every position {every:.3f}", file=sys.stderr)

    waiting = list(reversed(chat[NUM_HELDOUT["chat"] :]))
    for goal in CHAT_TOKENS:
        while learner.cost.response_tokens < goal:
            learner.round(_take(waiting, min(per_round, goal - learner.cost.response_tokens)))
        measure(f"chat_{goal // 1000}k", "chat")
    measure("humaneval_before", "code")
    waiting, before = list(reversed(code[NUM_HELDOUT["code"] :])), learner.cost.response_tokens
    while (left := CODE_TOKENS - (learner.cost.response_tokens - before)) > 0:
        learner.round(_take(waiting, min(per_round, left)))
    measure("humaneval_8k", "code")
    measure("chat_after_humaneval", "chat")
    cost = learner.cost
    figures["train_cpu_ms_per_token"] = 1e3 * cost.cpu_s / cost.rows
    figures["train_cpu_ms_per_response_token"] = 1e3 * cost.cpu_s / cost.response_tokens
    return figures


def _traffic(name: str, target_dir: Path, spec: TargetSpec, settings: Settings) -> list[Request]:
    """Held-out requests first, then those to learn from."""
    cache = cache_dir()
    tokenizer = Tokenizer.from_file(str(target_dir / "tokenizer.json"))
    texts = prompts.chat_prompts(cache) if name == "chat" else prompts.code_prompts(cache)
    max_tokens = settings.integer("max_tokens", 96)
    workload = Workload(
        name, shuffled(render(tokenizer, texts, settings.integer("max_prompt_tokens", 320))), max_tokens
    )
    wanted = CHAT_TOKENS[-1] if name == "chat" else CODE_TOKENS
    num_tokens = wanted + (NUM_HELDOUT[name] + 1) * max_tokens
    return answered(target_dir, spec, settings.integer("topk", 16), workload, num_tokens, cache)


def _take(waiting: list[Request], num_tokens: int) -> list[Request]:
    """The next requests with at least so many response tokens."""
    taken: list[Request] = []
    while sum(len(request.answer) for request in taken) < num_tokens:
        if not waiting:
            raise ValueError("there are too few requests; answers were shorter than expected")
        taken.append(waiting.pop())
    return taken


def samples_of(requests: Sequence[Request]) -> list[Sample]:
    """One sample a request: `join` takes the chunks of a single request."""
    return [sample for request in requests for sample in join([request.chunk], Counter())]


def _ngram(requests: Sequence[Request]) -> float:
    walks = [walk(request.prompt, request.answer, NUM_STEPS) for request in requests]
    return sum(tokens for _, tokens in walks) / sum(verifies for verifies, _ in walks)


def bench_spec(target_dir: Path, layers: tuple[int, ...]) -> TargetSpec:
    """The target's shapes; nothing checks its fingerprint here."""
    config = load_frozen(target_dir, last_layer=False).config
    return TargetSpec("smollm2", "0" * 64, "0" * 64, layers, config["hidden_size"], config["vocab_size"])


def _meta(request: Request) -> ChunkMeta:
    chunk = request.chunk
    return ChunkMeta(
        sequence=0,
        request_id=chunk.request_id,
        chunk_index=0,
        last=True,
        incomplete=False,
        first_position=0,
        num_rows=len(chunk.token_ids),
        num_response=int(chunk.loss_mask.sum()),
        captured_at=chunk.captured_at,
        stored_at=0.0,
        workload=chunk.workload,
    )

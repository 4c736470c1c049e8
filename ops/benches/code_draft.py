"""A draft that has learnt a little code, for benches that need one that is accepted often but not always.

HumanEval prompts are answered by the target (plain_target.py) and the trainer's own code trains on them; the
first prompts are held out for the bench.
"""

import shutil
from pathlib import Path

from demo_data.packages import cache_dir
from demo_data.prompts import code_prompts
from demo_run.stack import AUX_LAYERS, DRAFT_VOCAB_SIZE
from tokenizers import Tokenizer

from benches.learn import Learner, bench_spec
from benches.learn_traffic import Workload, answered, render, shuffled
from benches.settings import Settings
from tide_daemon.draft import checkpoint
from tide_daemon.draft.checkpoint import Checkpoint
from tide_daemon.trainer.settings import TrainerSettings

NUM_HELD_OUT = 40
_NUM_TOKENS = 6_000


def held_out_prompts(target: Path) -> list[list[int]]:
    """Token ids of the prompts that no draft from here has seen."""
    return _prompts(target)[:NUM_HELD_OUT]


def draft_of(settings: Settings, target: Path) -> Path:
    """Folder of the draft that `--set draft=DIR` names (as `tide-daemon export` writes it), else of one trained now."""
    given = settings.text("draft", "")
    return Path.cwd() / given if given else write_drafts(target, settings.work_dir, 1)[0][0]


def write_drafts(target: Path, work_dir: Path, count: int) -> list[tuple[Path, Checkpoint]]:
    """`count` successive drafts, each from a training round of equal size, as checkpoint folders."""
    spec = bench_spec(target, tuple(AUX_LAYERS))
    workload = Workload("code-draft", _prompts(target)[NUM_HELD_OUT:], 96)
    requests = answered(target, spec, 16, workload, _NUM_TOKENS, cache_dir())
    settings = TrainerSettings(
        name="bench", model="bench", device="cpu", nice=0, heldout_share=0.0, draft_vocab_size=DRAFT_VOCAB_SIZE,
        round_max_tokens=1 << 30, store_max_age_s=1e9, replay_max_age_s=1e10, checkpoint_interval_s=1e9,
    )  # fmt: skip
    learner = Learner(spec, target, work_dir / "trainer", settings)
    written = []
    for number in range(count):
        learner.round(requests[number::count])
        folder = work_dir / f"draft-{number + 1}"
        shutil.copytree(learner.candidate_dir, folder)
        written.append((folder, checkpoint.load(folder)))
    return written


def _prompts(target: Path) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(target / "tokenizer.json"))
    return shuffled(render(tokenizer, code_prompts(cache_dir()), 320))

"""A valid draft that nothing was learnt by, published with scores that pass the gate.

What is tested with it is that a version is deployed once and comes back after every fault; how good
drafts are is measured by the benches and shown by the demonstration.
"""

import json
from pathlib import Path

from demo_run.stack import DRAFT_VOCAB_SIZE

from tide_daemon.bus.port import Bus
from tide_daemon.draft import checkpoint
from tide_daemon.draft.config import config_for_target
from tide_daemon.roles.draft_publish import Publisher
from tide_daemon.trainer.rounds import Rounds, Trained
from tide_daemon.wire.records import NO_DRAFT, DraftManifest, RequestScore, TargetSpec


async def publish(
    bus: Bus, spec: TargetSpec, model_dir: Path, folder: Path, vocab_size: int = DRAFT_VOCAB_SIZE
) -> DraftManifest:
    """Publish the first version of a model's draft, as a trainer would."""
    config = config_for_target(json.loads((model_dir / "config.json").read_text()), spec.aux_layer_ids, vocab_size)
    round_ = Rounds(folder).open(1)
    digest = checkpoint.save(round_.candidate_dir, config, checkpoint.placeholder(config).tensors).digest
    round_.set_trained(Trained(digest, "", "nothing", 0, 0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0))
    scores = tuple(RequestScore(f"{number:016x}", "", 0, 100, 100.0, 130.0 + number) for number in range(8))
    return await Publisher(bus, spec, "hand-made", 8).publish(round_, scores, 3, None, NO_DRAFT)

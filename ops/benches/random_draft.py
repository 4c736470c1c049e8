"""Write an EAGLE-3 draft with random weights, for timing only: it is accepted by chance, its cost is a trained one's.

python ops/benches/random_draft.py TARGET_DIR OUT_DIR [--draft-vocab-size 4096] [--seed 0]
"""

import argparse
import json
from pathlib import Path

import torch

from tide_daemon.draft.checkpoint import placeholder, save
from tide_daemon.draft.config import config_for_target
from tide_daemon.engine.sglang.target import default_aux_layers

_WEIGHT_STD = 0.02


def write_random_draft(target_dir: Path, out_dir: Path, *, draft_vocab_size: int = 4096, seed: int = 0) -> Path:
    """Write a draft of exactly the shapes that a trained one for this Llama target has.

    The draft vocabulary is the first `draft_vocab_size` ids of the target's, so d2t (offsets) is zero.
    """
    target = json.loads((target_dir / "config.json").read_text())
    config = config_for_target(target, default_aux_layers(target["num_hidden_layers"]), draft_vocab_size)
    tensors = placeholder(config).tensors
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in tensors.items():
        if tensor.ndim == 2:
            tensors[name] = (torch.randn(tensor.shape, generator=generator) * _WEIGHT_STD).to(torch.bfloat16)
    save(out_dir, config, tensors)
    return out_dir


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target_dir", type=Path)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--draft-vocab-size", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(write_random_draft(args.target_dir, args.out_dir, draft_vocab_size=args.draft_vocab_size, seed=args.seed))


if __name__ == "__main__":
    main()

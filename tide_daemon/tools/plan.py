"""`tide-daemon plan`: what a deployment moves and stores, when speculation pays, and who should serve and train.

    tide-daemon plan gpt-oss-120b --tokens-per-s 6500 --devices h100=8,mi250=4 --static 1.14 --adapted 1.31
    tide-daemon plan /models/mine/config.json --tokens-per-s 2000 --devices big=4,small=8 --speed big=5:2,small=1:1

Arithmetic only: no broker, no GPU and no configuration is needed. The sums are in sizing/ and
policy/allocation.py, which say where each figure comes from.
"""

import argparse
import json
from pathlib import Path

from tide_daemon.errors import ConfigError
from tide_daemon.exit_codes import ExitCode
from tide_daemon.policy.allocation import PAPER_TRAIN_PER_SERVE, DeviceGroup
from tide_daemon.sizing.devices import RELATIVE_SPEEDS, RelativeSpeed
from tide_daemon.sizing.known_models import SOURCES, known_target
from tide_daemon.sizing.plan import PlanRequest, make_plan
from tide_daemon.sizing.stream import COMPRESSION
from tide_daemon.sizing.targets import TargetShape, read_target
from tide_daemon.tools.plan_text import plan_text

_SPEED = "NAME=SERVING:TRAINING"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The target, its traffic, the devices, and what is assumed."""
    parser.add_argument("model", help=f"a config.json or its folder, or one of: {', '.join(SOURCES)}")
    parser.add_argument("--tokens-per-s", type=float, required=True, metavar="N", help="captured tokens/s, all nodes")
    parser.add_argument(
        "--devices",
        default="",
        metavar="NAME=COUNT,...",
        help=f"{', '.join(RELATIVE_SPEEDS)}; others with --speed",
    )
    parser.add_argument(
        "--speed",
        default="",
        metavar="NAME=SERVING:TRAINING,...",
        help="speeds of one device relative to any one reference; instead of the paper's (MI250 = 1)",
    )
    parser.add_argument(
        "--static", type=float, default=1.14, metavar="S", help="tokens/s over plain with a static draft (1.14)"
    )
    parser.add_argument(
        "--adapted", type=float, default=1.16, metavar="S", help="the same with a draft that is kept aligned (1.16)"
    )
    parser.add_argument(
        "--train-need",
        type=float,
        default=PAPER_TRAIN_PER_SERVE,
        metavar="X",
        help="training speed needed for each unit of serving speed (0.074: the paper's 4 MI250 for 8 H100)",
    )
    parser.add_argument("--steps", type=int, default=3, metavar="N", help="drafted tokens a step (3)")
    parser.add_argument("--context", type=int, default=1024, metavar="N", help="positions of a running request (1024)")
    parser.add_argument("--running", type=int, default=64, metavar="N", help="requests running at once, all nodes (64)")
    parser.add_argument(
        "--retention-h", default="1,24,168", metavar="H,...", help="hours that states might be kept (1,24,168)"
    )
    parser.add_argument(
        "--stream-gib", type=float, default=1.0, metavar="N", help="size of the hidden-state stream, GiB (1)"
    )
    parser.add_argument("--codec", choices=tuple(COMPRESSION), default="bf16-planes", help="how states travel")
    parser.add_argument("--aux-layers", type=int, default=3, metavar="N", help="captured layers (3)")
    parser.add_argument("--draft-vocab", type=int, default=32_000, metavar="N", help="vocabulary of the draft (32000)")
    parser.add_argument("--json", action="store_true", help="everything as JSON instead of text")


def run(arguments: argparse.Namespace) -> int:
    """Print the plan; wrong values end with exit code 2 and a sentence."""
    try:
        plan = make_plan(_request(arguments))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    print(json.dumps(plan, indent=2) if arguments.json else plan_text(plan))
    return ExitCode.OK


def _request(arguments: argparse.Namespace) -> PlanRequest:
    return PlanRequest(
        target=_target(arguments.model),
        tokens_per_s=arguments.tokens_per_s,
        num_running=arguments.running,
        retentions_h=tuple(_number(item, "--retention-h", "H,...") for item in arguments.retention_h.split(",")),
        stream_max_bytes=arguments.stream_gib * 2**30,
        codec=arguments.codec,
        num_aux_layers=arguments.aux_layers,
        draft_vocab=arguments.draft_vocab,
        num_steps=arguments.steps,
        context=arguments.context,
        devices=_devices(arguments.devices, arguments.speed),
        static_speedup=arguments.static,
        adapted_speedup=arguments.adapted,
        train_per_serve=arguments.train_need,
    )


def _target(model: str) -> TargetShape:
    known = known_target(model)
    if known is not None:
        return known
    path = Path(model)
    if not path.exists():
        raise ValueError(f"{model} is neither a file or folder nor one of {', '.join(SOURCES)}")
    return read_target(path)


def _devices(counts: str, speeds: str) -> tuple[DeviceGroup, ...]:
    known = dict(RELATIVE_SPEEDS)
    for name, value in _pairs(speeds, "--speed"):
        serving, _, training = value.partition(":")
        known[name] = RelativeSpeed(_number(serving, "--speed", _SPEED), _number(training, "--speed", _SPEED))
    groups = []
    for name, value in _pairs(counts, "--devices"):
        if name not in known:
            raise ValueError(f"--devices: how fast is {name}? say --speed {name}=SERVING:TRAINING")
        if not value.isdecimal() or int(value) < 1:
            raise ValueError(f"--devices {name}: the count must be a positive integer, not {value!r}")
        groups.append(DeviceGroup(name, int(value), known[name].serving, known[name].training))
    return tuple(groups)


def _pairs(text: str, option: str) -> list[tuple[str, str]]:
    pairs = []
    for item in filter(None, text.split(",")):
        name, sign, value = item.partition("=")
        if not sign or not name:
            raise ValueError(f"{option} wants NAME=VALUE,..., not {item!r}")
        pairs.append((name.strip().lower(), value.strip()))
    return pairs


def _number(text: str, option: str, form: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{option} wants {form} in numbers, not {text!r}") from None

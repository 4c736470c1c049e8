"""Everything that `tide-daemon plan` answers, as one map of plain values. The words are in tools/plan_text.py."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from tide_daemon.draft.config import config_for_target
from tide_daemon.errors import DraftError
from tide_daemon.policy.allocation import PAPER_TRAIN_PER_SERVE, DeviceGroup, allocate
from tide_daemon.sizing import break_even, drafts, stream
from tide_daemon.sizing.devices import DATA_SHEETS, can_hold
from tide_daemon.sizing.targets import TargetShape

HOUR_S = 3600.0
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What is known of a deployment.

    Attributes:
        tokens_per_s: captured tokens/s of the whole fleet.
        num_running: requests that run at the same time, all nodes.
        retentions_h: how long hidden states might stay on the broker.
        stream_max_bytes: size of the hidden-state stream, bus.hidden_max_bytes.
        devices: empty to leave out what depends on them.
        static_speedup, adapted_speedup: assumed tokens/s over plain.
        num_steps, context: of the break-even figures.
    """

    target: TargetShape
    tokens_per_s: float
    num_running: int = 64
    retentions_h: tuple[float, ...] = (1.0, 24.0, 168.0)
    stream_max_bytes: float = float(1 << 30)
    codec: str = "bf16-planes"
    num_aux_layers: int = 3
    draft_vocab: int = 32_000
    num_steps: int = 3
    context: int = 1024
    devices: tuple[DeviceGroup, ...] = ()
    static_speedup: float = 1.14
    adapted_speedup: float = 1.16
    train_per_serve: float = PAPER_TRAIN_PER_SERVE


def make_plan(request: PlanRequest) -> dict[str, Any]:
    """Sections "target", "stream", "draft", and with devices "break_even" and "allocation"; None where unknown.

    Raises:
        ValueError: a value that makes no sense, or a target for which no draft can be described.
    """
    if request.tokens_per_s <= 0 or request.num_running < 1 or min(request.retentions_h, default=0.0) <= 0:
        raise ValueError("tokens/s, running requests and retention must be positive")
    if not 1 <= request.num_steps <= 15 or request.context < 0 or request.stream_max_bytes <= 0:
        raise ValueError("steps must be 1 to 15, the context not negative, the stream's size positive")
    draft = _draft(request)
    plan: dict[str, Any] = {
        "target": {
            "name": request.target.name,
            "hidden_size": request.target.hidden_size,
            "num_layers": request.target.num_layers,
            "total_params": request.target.total_params,
            "active_params": request.target.active_params,
            "weight_bytes": request.target.weight_bytes(),
        },
        "stream": _stream(request),
        "draft": draft,
        "break_even": None,
        "allocation": None,
    }
    if request.devices:
        plan["break_even"] = _break_even(request, draft["bytes"])
        plan["allocation"] = _allocation(request)
    return plan


def _stream(request: PlanRequest) -> dict[str, Any]:
    hidden, layers = request.target.hidden_size, request.num_aux_layers
    sizes = {
        codec: stream.stream_size(layers, hidden, codec, request.tokens_per_s, num_running=request.num_running)
        for codec in stream.COMPRESSION
    }
    chosen = sizes[request.codec]
    return {
        "tokens_per_s": request.tokens_per_s,
        "codec": request.codec,
        "by_codec": {codec: asdict(size) for codec, size in sizes.items()},
        "raw_mib_per_s": chosen.raw_bytes_per_token * request.tokens_per_s / 2**20,
        "retention_bytes": {f"{hours:g}": chosen.held_bytes(hours * HOUR_S) for hours in request.retentions_h},
        "stream_max_bytes": request.stream_max_bytes,
        "stream_holds_s": chosen.held_s(request.stream_max_bytes),
        "offline_tokens": stream.PAPER_OFFLINE_TOKENS,
        "offline_bytes": stream.offline_bytes(stream.PAPER_OFFLINE_TOKENS, hidden),
        "window_tokens": stream.PAPER_WINDOW_TOKENS,
        "window_bytes": stream.offline_bytes(stream.PAPER_WINDOW_TOKENS, hidden),
    }


def _draft(request: PlanRequest) -> dict[str, Any]:
    target = request.target
    layers = tuple(sorted({1, target.num_layers // 2, max(0, target.num_layers - 4)}))
    try:
        # Which layers does not matter for the size, how many does.
        aux = tuple(range(request.num_aux_layers)) if request.num_aux_layers != len(layers) else layers
        config = config_for_target(target.config, aux, min(request.draft_vocab, target.vocab_size))
    except DraftError as error:
        raise ValueError(f"{target.name}: {error}") from None
    least, most = drafts.delta_bytes(config)
    return {
        "params": drafts.draft_params(config),
        "bytes": drafts.draft_bytes(config),
        "vocab_size": config.draft_vocab_size,
        "delta_bytes_least": least,
        "delta_bytes_most": most,
    }


def _break_even(request: PlanRequest, draft_bytes: float) -> dict[str, Any] | None:
    """On the fastest kind of device with a data sheet; None when none has one, or the target does not fit."""
    known = [group for group in request.devices if group.name in DATA_SHEETS]
    if not known:
        return None
    fastest = max(known, key=lambda group: group.serving)
    instance = break_even.smallest_instance(request.target, DATA_SHEETS[fastest.name])
    if instance is None:
        return None
    figures = break_even.break_even_by_batch(
        request.target, instance, draft_bytes, request.num_steps, request.context, BATCH_SIZES
    )
    return {
        "device": fastest.name,
        "num_devices": instance.num_devices,
        "num_steps": request.num_steps,
        "context": request.context,
        "accept_length_by_batch": {str(batch): value for batch, value in figures.items()},
    }


def _allocation(request: PlanRequest) -> dict[str, Any]:
    weights = request.target.weight_bytes()
    groups = [
        group if can_hold(weights, group.name, group.count) else replace(group, serving=0.0)
        for group in request.devices
    ]
    found = allocate(groups, request.static_speedup, request.adapted_speedup, request.train_per_serve)
    return {
        "devices": {group.name: asdict(group) for group in groups},
        "static_speedup": request.static_speedup,
        "adapted_speedup": request.adapted_speedup,
        "train_per_serve": request.train_per_serve,
        "serve": dict(found.serve),
        "train": dict(found.train),
        "adapted": found.adapted,
        "baselines": found.baselines,
        "over": {name: found.adapted / value for name, value in found.baselines.items()},
        "best_baseline": found.best_baseline,
        "break_even": found.break_even,
        "break_even_plain": found.break_even_plain,
        "pays": found.pays,
    }

"""A plan in plain words. Pure; used by tools/plan.py."""

from typing import Any

_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def plan_text(plan: dict[str, Any]) -> str:
    """Short sections: target, stream, draft, and where it is known break-even and who serves and trains."""
    sections = [_target(plan["target"]), _stream(plan["stream"]), _draft(plan["draft"])]
    if plan["break_even"] is not None:
        sections.append(_break_even(plan["break_even"]))
    if plan["allocation"] is not None:
        sections.append(_allocation(plan["allocation"]))
    else:
        sections.append(["SERVE AND TRAIN", "  say which devices there are (--devices h100=8,mi250=4)"])
    return "\n\n".join("\n".join(lines) for lines in sections)


def size(num_bytes: float) -> str:
    """Bytes for people, decimal units."""
    for unit, name in _UNITS:
        if num_bytes >= unit:
            return f"{num_bytes / unit:.3g} {name}"
    return f"{num_bytes:.0f} B"


def span(seconds: float) -> str:
    """Seconds for people."""
    for unit, name in ((86_400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds:.3g} seconds"


def _target(target: dict[str, Any]) -> list[str]:
    total, active = target["total_params"], target["active_params"]
    return [
        f"TARGET {target['name']}",
        f"  {target['num_layers']} layers of {target['hidden_size']}; {total / 1e9:.3g} billion parameters, "
        f"{active / 1e9:.3g} billion read for a token; weights take {size(target['weight_bytes'])}",
    ]


def _stream(found: dict[str, Any]) -> list[str]:
    codec = found["codec"]
    chosen = found["by_codec"][codec]
    lines = [
        f"HIDDEN STATES at {found['tokens_per_s']:g} captured tokens/s",
        f"  states of one token in bf16: {chosen['raw_bytes_per_token']:,} B "
        f"({found['raw_mib_per_s']:.4g} MiB/s before compression)",
        "  on the bus, with token ids and the target's 16 likeliest tokens:",
    ]
    for name, figures in found["by_codec"].items():
        lines.append(
            f"    {name:<13} {figures['wire_bytes_per_token']:>8,.0f} B/token {figures['wire_bytes_per_s'] / 1e6:>8.4g}"
            f" MB/s {figures['messages_per_s']:>7.3g} messages/s{'  <- chosen' if name == codec else ''}"
        )
    held = ", ".join(f"{hours} h take {size(value)}" for hours, value in found["retention_bytes"].items())
    lines += [
        f"  on the broker's disk: {held}",
        f"    a stream of {size(found['stream_max_bytes'])} holds {span(found['stream_holds_s'])}; the oldest go first",
        f"  every state of {found['offline_tokens'] / 1e6:.0f} million tokens, as offline training keeps them, takes "
        f"{size(found['offline_bytes'])};",
        f"    a window of {found['window_tokens'] / 1e6:.3g} million tokens {size(found['window_bytes'])}, "
        f"{found['offline_bytes'] / found['window_bytes']:.0f} times less",
    ]
    return lines


def _draft(found: dict[str, Any]) -> list[str]:
    return [
        "DRAFT (EAGLE-3)",
        f"  {found['params'] / 1e6:.4g} million parameters with a vocabulary of {found['vocab_size']:,}; "
        f"{size(found['bytes'])} in bf16",
        f"  a new version travels as a delta of {size(found['delta_bytes_least'])} "
        f"to {size(found['delta_bytes_most'])}",
    ]


def _break_even(found: dict[str, Any]) -> list[str]:
    most = found["num_steps"] + 1
    figures = [
        f"{batch}: {value:.2f}{' (never)' if value > most else ''}"
        for batch, value in found["accept_length_by_batch"].items()
    ]
    return [
        f"BREAK-EVEN on {found['num_devices']} {found['device']}, {found['num_steps']} drafted tokens, "
        f"context {found['context']}",
        "  speculation pays from this accept length, by batch size:",
        "    " + "   ".join(figures),
        "  (an estimate from data sheets; a running node measures its own)",
    ]


def _counts(devices: dict[str, int]) -> str:
    return " and ".join(f"{count} {name}" for name, count in devices.items())


def _allocation(found: dict[str, Any]) -> list[str]:
    lines = [
        "SERVE AND TRAIN",
        f"  assumed: a static draft gives {found['static_speedup']:g} of plain, an adapted one "
        f"{found['adapted_speedup']:g}; measure both on your traffic",
    ]
    lines += [
        f"  {group['count']} {name} do not hold the target's weights and cannot serve it"
        for name, group in found["devices"].items()
        if group["serving"] == 0.0
    ]
    best, baselines = found["best_baseline"], found["baselines"]
    if not found["train"]:
        return [
            *lines,
            "  ANSWER: do not train on these: too few devices for one to train and one to serve.",
            f"    {best[0].upper()}{best[1:]}.",
        ]
    everything = {group["name"]: group["count"] for group in found["devices"].values()}
    split = f"{_counts(found['serve'])} serve, {_counts(found['train'])} train"
    plain = baselines["all serve plain"]
    width = max(len(split), *(len(name) for name in baselines))
    lines.append("  tokens/s relative to all of them serving plain:")
    lines += [f"    {name:<{width}}  {value / plain:.3f}" for name, value in baselines.items()]
    lines.append(f"    {split:<{width}}  {found['adapted'] / plain:.3f}")
    over = found["over"][best]
    if found["pays"]:
        lines.append(f"  ANSWER: {split}.")
        lines.append(
            f"    That is {over:.3f} of the best without training ({best}); it pays from an adapted "
            f"speed-up of {found['break_even']:.3f}."
        )
    else:
        lines.append(f"  ANSWER: do not train on these ({_counts(everything)}): {best}.")
        lines.append(
            f"    Training on {_counts(found['train'])} gives {over:.3f} of that; it would pay from an adapted "
            f"speed-up of {found['break_even']:.3f} (against plain serving from {found['break_even_plain']:.3f})."
        )
    return lines

"""Devices by name: relative speeds as the paper measured them, and data sheets for the roofline."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RelativeSpeed:
    """Speed of one device relative to one MI250."""

    serving: float
    training: float


@dataclass(frozen=True, slots=True)
class DataSheet:
    """Of one device: bytes/s of memory, dense bf16 FLOP/s without sparsity, bytes of memory."""

    bandwidth: float
    flops: float
    memory: float


RELATIVE_SPEEDS = {
    "h100": RelativeSpeed(6.76, 2.44),
    "mi300x": RelativeSpeed(4.42, 1.77),
    "mi250": RelativeSpeed(1.0, 1.0),
}
"""gpt-oss-120b on SGLang, training with FSDP. Source: TIDE v2 section V-F, Fig. 14."""

DATA_SHEETS = {
    "h100": DataSheet(3.35e12, 989e12, 80e9),  # NVIDIA H100 SXM5 80 GB
    "mi300x": DataSheet(5.3e12, 1307e12, 192e9),  # AMD Instinct MI300X
    "mi250": DataSheet(3.2e12, 362e12, 128e9),  # AMD Instinct MI250, both dies
}
"""From the makers' data sheets; peaks, see break_even.py for what is taken as reached."""

MEMORY_FOR_WEIGHTS = 0.8
"""Share of a device's memory that weights may take; the rest is KV cache and buffers. An assumption."""


def can_hold(weight_bytes: float, name: str, count: int) -> bool:
    """Whether so many devices of a kind hold the weights together; True for a kind without a data sheet."""
    sheet = DATA_SHEETS.get(name)
    return sheet is None or weight_bytes <= MEMORY_FOR_WEIGHTS * sheet.memory * count

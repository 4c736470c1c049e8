"""Training signals on the wire and on disk: bytes a token, MB/s, messages/s, what a retention holds.

Letters: A aux layers, H hidden size, k log-probabilities a row. A row is one token.
"""

from dataclasses import dataclass

BF16_BYTES = 2
_BLOCK = 64
_TOKEN_BYTES = 4 + 1
"""Token id and loss mask of a row; see wire/records.py, HiddenChunk."""
_TOPK_BYTES = 4 + 2
"""Id and float16 log-probability of one of the target's most likely tokens."""

_HEADER_BYTES = 2048 + 64
"""Room kept in a message; rows are cut as if nothing compressed, see rows_per_chunk in wire/tensors.py."""

COMPRESSION = {"bf16": 1.24, "bf16-planes": 1.42, "int8-block64": 2.27}
"""Raw bf16 bytes over bytes on the wire, zstd level 1 included. Our own measurement on real states of
SmolLM2-135M (layers 2, 15, 27); int8-block64 costs 1.4% median relative error. Other targets may differ."""

OFFLINE_STATES = 4
"""States a token that SpecForge's offline training keeps: three aux layers and the last hidden state.
Source: SpecForge, DataPoint of prepare_hidden_states."""
PAPER_OFFLINE_TOKENS = 202.3e6
PAPER_WINDOW_TOKENS = 8.35e6
"""Tokens behind the two columns of TIDE v2 Table I at 4 H a token, derived from its last row (13.26 and 0.55 TB at
H = 8,192); the other rows agree. The paper states neither number."""


@dataclass(frozen=True, slots=True)
class StreamSize:
    """What one stream of hidden states carries.

    Attributes:
        raw_bytes_per_token: aux states in bf16.
        row_bytes: with token id, mask and log-probabilities, before compression.
        wire_bytes_per_token: the whole row after codec and compression.
        wire_bytes_per_s, messages_per_s: on the bus.
    """

    raw_bytes_per_token: int
    row_bytes: int
    wire_bytes_per_token: float
    wire_bytes_per_s: float
    messages_per_s: float

    def held_bytes(self, retention_s: float) -> float:
        """Bytes on the broker's disk when everything of the last `retention_s` seconds is kept."""
        return self.wire_bytes_per_s * retention_s

    def held_s(self, max_bytes: float) -> float:
        """Seconds of traffic that a stream of `max_bytes` holds."""
        return max_bytes / self.wire_bytes_per_s


def aux_bytes(num_layers: int, hidden_size: int) -> int:
    """Raw bf16 bytes of one token's aux states: A * H * 2. Source: TIDE v2 section V-E."""
    return num_layers * hidden_size * BF16_BYTES


def encoded_bytes(num_layers: int, hidden_size: int, codec: str) -> int:
    """Bytes of one token's aux states in a codec, before zstd. Same as wire/tensors.py, without numpy."""
    width = num_layers * hidden_size
    if codec in ("bf16", "bf16-planes"):
        return width * BF16_BYTES
    if codec == "int8-block64":
        return width + -(-width // _BLOCK) * 2
    raise ValueError(f"codec must be one of {', '.join(COMPRESSION)}, not {codec!r}")


def stream_size(
    num_layers: int,
    hidden_size: int,
    codec: str,
    tokens_per_s: float,
    *,
    num_topk: int = 16,
    chunk_bytes: int = 768 * 1024,
    chunk_max_age_s: float = 5.0,
    num_running: int = 64,
) -> StreamSize:
    """The stream that so many captured tokens/s make; defaults are those of the configuration.

    Args:
        num_running: requests that the tokens are spread over. A message holds rows of one request, and goes
            out when it is full or its oldest row is chunk_max_age_s old.
    """
    raw = aux_bytes(num_layers, hidden_size)
    rest = _TOKEN_BYTES + _TOPK_BYTES * num_topk
    row = encoded_bytes(num_layers, hidden_size, codec) + rest
    # Ids and log-probabilities are taken as incompressible: they are few.
    on_wire = raw / COMPRESSION[codec] + rest
    rows_when_full = max(1, (chunk_bytes - _HEADER_BYTES) * 256 // (257 * row))
    rows_when_due = max(1.0, tokens_per_s / num_running * chunk_max_age_s)
    return StreamSize(
        raw_bytes_per_token=raw,
        row_bytes=row,
        wire_bytes_per_token=on_wire,
        wire_bytes_per_s=on_wire * tokens_per_s,
        messages_per_s=tokens_per_s / min(rows_when_full, rows_when_due),
    )


def offline_bytes(num_tokens: float, hidden_size: int) -> float:
    """Disk that keeping every state of a training set takes, as SpecForge's offline training does."""
    return num_tokens * aux_bytes(OFFLINE_STATES, hidden_size)

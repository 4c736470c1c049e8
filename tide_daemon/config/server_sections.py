"""Sections of the server role: [draft], [capture], [server]. Trainers read some of [draft] too."""

from dataclasses import dataclass
from pathlib import Path

from tide_daemon.config.daemon_sections import MIB
from tide_daemon.config.fields import setting


@dataclass(frozen=True, slots=True)
class DraftConfig:
    """The shape of the EAGLE-3 draft. It cannot change while an engine runs."""

    aux_layer_ids: tuple[int, ...] = setting(
        (),
        "Decoder layers of the target (0-based, ascending) whose output feeds the draft; three for EAGLE-3.",
        minimum=0,
        effective_for=("server",),
        computed="[0, L//2, L-2] of the target's L layers",
    )
    vocab_size: int = setting(
        32_000,
        "Tokens that the draft can propose, the most frequent in traffic; at most the target's.",
        unit="tokens",
        minimum=16,
        maximum=1 << 20,
        effective_for=("server", "trainer"),
    )
    max_steps: int = setting(
        5,
        "Longest chain of drafted tokens a step; the controller chooses 0 to this.",
        minimum=1,
        maximum=15,
        effective_for=("server", "controller"),
    )


@dataclass(frozen=True, slots=True)
class CaptureConfig:
    """What leaves the engine as training signal, and in which form."""

    sample_rate: float = setting(
        1.0,
        "Share of requests that may be captured; the controller can only lower it.",
        minimum=0,
        maximum=1,
        reloads=True,
    )
    excluded_workloads: tuple[str, ...] = setting(
        (), "Labels of workloads of which nothing is captured, whatever else is set or desired.", reloads=True
    )
    token_ids: bool = setting(
        True,
        "Chunks name the tokens. False withholds them: prompts and sampled words are not told, and training is left "
        "with those stretches of an answer where each token was the target's first choice (PRIVACY.md).",
    )
    max_rows: int = setting(
        0,
        "At most this many rows of one request; 0 for all.",
        unit="rows",
        minimum=0,
        maximum=1 << 20,
        reloads=True,
    )
    prompt_workloads: bool = setting(
        True,
        "Requests whose client names no workload are told apart by a hash of the first 32 tokens of their prompt, "
        "where many begin alike.",
    )
    topk_logprobs: int = setting(
        16, "The target's most likely tokens kept for each row, as soft targets; 0 for none.", minimum=0, maximum=64
    )
    ring_bytes: int = setting(
        128 * MIB,
        "Shared memory between engine and daemon. Rows that find it full are dropped and counted.",
        unit="bytes",
        minimum=4 * MIB,
        maximum=1 << 36,
    )
    codec: str = setting(
        "bf16-planes",
        "How states travel: lossless as they are, lossless by byte planes, or int8 in blocks of 64.",
        choices=("bf16", "bf16-planes", "int8-block64"),
    )
    chunk_bytes: int = setting(
        768 * 1024,
        "Aim for messages of this size; the server's max_payload bounds it.",
        unit="bytes",
        minimum=16 * 1024,
        maximum=8 * MIB,
    )
    chunk_max_age_s: float = setting(
        5.0, "Rows of a running request are published at the latest after this.", unit="s", minimum=0.1, maximum=600
    )
    publish_bytes_in_flight: int = setting(
        8 * MIB,
        "Published chunks that may wait for the broker's answer. Beyond, rows stay in the ring, which drops the newest "
        "when it is full and counts them.",
        unit="bytes",
        minimum=1 * MIB,
        maximum=1 << 32,
    )


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """The engine and how it is started."""

    mode: str = setting(
        "launch",
        "launch: start and supervise SGLang; attach: one that `tide-daemon sglang` started; "
        "modelled: no model at all, simulated requests, for trying everything else.",
        choices=("launch", "attach", "modelled"),
    )
    model_path: Path | None = setting(
        None, "Folder of the target model (config.json, safetensors, tokenizer).", required_for=("server",)
    )
    share_target: bool = setting(
        True,
        "Put the target's embedding, final norm, head and last layer on the bus once, for trainers without its files.",
    )
    arguments: tuple[str, ...] = setting(
        (),
        "Further arguments for sglang.launch_server, as on its command line. With attach `tide-daemon sglang` takes "
        "them, and the daemon only an --admin-api-key or --api-key among them.",
    )
    host: str = setting("127.0.0.1", "Where SGLang serves its OpenAI endpoint.")
    port: int = setting(30000, "Port of SGLang's endpoint.", minimum=1, maximum=65535)
    device: str = setting(
        "auto",
        "cpu puts the stand-ins for sgl_kernel on SGLang's path; auto: cpu if no GPU is seen.",
        choices=("auto", "cpu", "gpu"),
    )
    cpu_threads: int = setting(
        1, "Threads of SGLang's linear algebra on a CPU.", unit="threads", minimum=1, maximum=1024
    )
    start_timeout_s: float = setting(
        600.0,
        "SGLang must answer within this after its start, or it is started again.",
        unit="s",
        minimum=5,
        maximum=7200,
    )
    restart_backoff_max_s: float = setting(
        60.0, "SGLang that ended is started again after 1 s, doubling up to this.", unit="s", minimum=1, maximum=3600
    )
    command_timeout_s: float = setting(
        30.0, "The engine must answer a command (swap, steps, stats) within this.", unit="s", minimum=0.5, maximum=600
    )
    report_interval_s: float = setting(
        1.0, "Time between two reports to the controller.", unit="s", minimum=0.1, maximum=60
    )
    plain_every: int = setting(
        64,
        "After so many speculative steps two decode plainly, so that the gain is known as of now; 0: never.",
        unit="steps",
        minimum=0,
        maximum=1 << 20,
    )
    drafts_kept: int = setting(
        4,
        "Draft checkpoints kept on disk, so that a rollback needs no download.",
        unit="drafts",
        minimum=2,
        maximum=100,
    )

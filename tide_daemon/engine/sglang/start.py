"""How SGLang is started: the run directory, its arguments and its environment."""

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from tide_daemon.api_keys import KEY_FLAGS
from tide_daemon.engine.sglang.launch_env import Launch, launch, value_of
from tide_daemon.engine.sglang.settings import ENGINE_DIR, PluginSettings, write_settings
from tide_daemon.engine.sglang.target import prepare_placeholder, runs_in_float16
from tide_daemon.errors import ConfigError, EngineError

log = structlog.get_logger()

_STEPS_FILE = "steps.json"
_PLACEHOLDER = "placeholder"
_PLAIN_RUNNING = 2048

_NOT_ADAPTIVE = (
    "--enable-dp-attention", "--enable-two-batch-overlap", "--enable-pdmux", "--enable-multi-layer-eagle",
    "--enable-lora", "--lora-paths", "--enable-hisparse",
)  # fmt: skip
"""Flags with which SGLang drops `--speculative-adaptive` (srt/speculative/adaptive_spec_params.py,
adaptive_unsupported_reason) or does not start (srt/arg_groups/lora_hook.py, hisparse_hook.py)."""

_ONE_ONLY = {
    "--attn-dp-size": "SGLang has no adaptive draft steps with attention data parallelism",
    "--attention-data-parallel-size": "SGLang has no adaptive draft steps with attention data parallelism",
    # srt/arg_groups/validation_hook.py; with SGLANG_ENABLE_PP_SPEC too, which is for EAGLE without adaptive steps.
    "--pp-size": "SGLang has no EAGLE3 drafts with pipeline parallelism",
    "--pipeline-parallel-size": "SGLang has no EAGLE3 drafts with pipeline parallelism",
    "--nnodes": "ranks on other nodes are out of this daemon's reach and would get neither steps nor drafts; run one "
    "SGLang and one role server on each node",
}
"""Sizes that must stay 1, and why."""


@dataclass(frozen=True, slots=True)
class SglangSettings:
    """How SGLang is run on this node.

    Attributes:
        model: the target's short name in subjects.
        node: this node's name.
        run_dir: for sockets, logs, settings and the placeholder draft; short, sockets allow 107 bytes.
        model_path: the target, a local folder in Hugging Face format.
        arguments: the operator's own, as for `python -m sglang.launch_server`.
        host, port: where SGLang serves.
        device: "auto", "cpu" or "gpu".
        cpu_threads: threads of SGLang's linear algebra on a CPU.
        aux_layer_ids: 0-based layers whose output is captured; empty: a low, a middle and a high one.
        draft_vocab_size: rows of the draft's LM head, fixed while SGLang runs.
        max_steps: most draft steps that may be asked for.
        plugin: settings of the plug-in.
        codec, chunk_bytes, chunk_max_age_s: how rows become chunks, see assemble.py.
        start_timeout_s: SGLang must be ready after this, or it is started again.
        restart_backoff_max_s: longest wait before it is started again.
        command_timeout_s: it must answer a command within this.
        attach: do not start SGLang, wait for one in run_dir.
        environment: variables added to SGLang's environment; they win.
    """

    model: str
    node: str
    run_dir: Path
    model_path: Path
    arguments: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 30000
    device: str = "auto"
    cpu_threads: int = 1
    aux_layer_ids: tuple[int, ...] = ()
    draft_vocab_size: int = 32_000
    max_steps: int = 5
    plugin: PluginSettings = field(default_factory=PluginSettings)
    codec: str = "bf16-planes"
    chunk_bytes: int = 768 * 1024
    chunk_max_age_s: float = 5.0
    start_timeout_s: float = 600.0
    restart_backoff_max_s: float = 60.0
    command_timeout_s: float = 30.0
    attach: bool = False
    environment: dict[str, str] = field(default_factory=dict)


def prepare(settings: SglangSettings, aux_layer_ids: tuple[int, ...]) -> None:
    """Make the run directory ready: the plug-in's settings, a placeholder draft, the candidate steps.

    Raises:
        ConfigError: the target cannot carry a draft.
        OSError: the directory cannot be written.
    """
    run_dir = settings.run_dir
    run_dir.mkdir(parents=True, exist_ok=True)
    run_dir.chmod(0o700)  # the control channel is this user's alone
    if settings.attach:
        return
    write_settings(run_dir, settings.plugin)
    prepare_placeholder(run_dir / _PLACEHOLDER, settings.model_path, aux_layer_ids, settings.draft_vocab_size)
    steps = {"1": {"candidate_steps": list(range(settings.max_steps + 1))}}
    (run_dir / _STEPS_FILE).write_text(json.dumps(steps))


def command(settings: SglangSettings) -> tuple[tuple[str, ...], dict[str, str]]:
    """Arguments and environment of `python -m sglang.launch_server`."""
    arguments = [
        "--model-path", str(settings.model_path), "--host", settings.host, "--port", str(settings.port),
        *settings.arguments,
        "--speculative-algorithm", "EAGLE3",
        "--speculative-draft-model-path", str(settings.run_dir / _PLACEHOLDER),
        # Else a draft takes the target's --quantization, and quantised weights cannot be swapped
        # (srt/arg_groups/serving_hook.py, handle_missing_default_values).
        "--speculative-draft-model-quantization", "unquant",
        "--speculative-num-steps", str(settings.max_steps),
        "--speculative-eagle-topk", "1",
        "--speculative-num-draft-tokens", str(settings.max_steps + 1),
        "--speculative-adaptive",
        "--speculative-adaptive-config", str(settings.run_dir / _STEPS_FILE),
    ]  # fmt: skip
    base = dict(os.environ) | settings.environment
    base.setdefault("OMP_NUM_THREADS", str(settings.cpu_threads))
    base.setdefault("HF_HUB_OFFLINE", "1")  # the target and the draft are local folders
    completed = launch(arguments, base, settings.device)
    limit = _running_limit(completed)
    environment = dict(completed.environment)
    environment[ENGINE_DIR] = str(settings.run_dir)
    allowed = environment.get("SGLANG_PLUGINS", "")
    if allowed and "tide" not in allowed.split(","):
        environment["SGLANG_PLUGINS"] = f"{allowed},tide"
    return (*completed.arguments, *limit), environment


def _running_limit(started: Launch) -> tuple[str, ...]:
    """`--max-running-requests` as plain SGLang would have it on a GPU, when the operator does not set it.

    With a draft SGLang allows 48 requests at a time (srt/arg_groups/speculative_hook.py, _handle_eagle_family), which
    would slow a busy server from its first day on, long before a draft is trained. Without one it allows 2048 to 4096,
    by the size of the KV cache (srt/mem_cache/kv_cache_configurator.py, resolve_max_num_reqs), so 2048 takes no more
    slots than plain SGLang would; where the cache holds fewer it lowers either number by the same rule. What does grow
    are graphs and logits: they are captured for batches up to SGLang's own limit for the card, not up to 48, for each
    number of steps. `--cuda-graph-max-bs-decode` bounds that.

    Left alone on a CPU, where nobody runs that many, and without a prefix cache: there SGLang reserves sliding-window
    and mamba states for as many requests as are allowed (srt/model_executor/pool_configurator.py,
    SWARequestCapPoolConfigurator; kv_cache_configurator.py, _handle_max_mamba_cache).
    """
    if value_of("--max-running-requests", started.arguments) is not None or started.device == "cpu":
        return ()
    if "--disable-radix-cache" in started.arguments:
        log.warning("max_running_requests", allowed=48, reason="--disable-radix-cache; set --max-running-requests")
        return ()
    log.info("max_running_requests", allowed=_PLAIN_RUNNING, reason="as without a draft; set --max-running-requests")
    return ("--max-running-requests", str(_PLAIN_RUNNING))


def admin_key(arguments: Sequence[str]) -> str:
    """The key that SGLang asks of /set_internal_state, "" for none: the admin's if there is one, else everybody's.

    Source: srt/utils/auth.py, decide_request_auth, ADMIN_OPTIONAL.
    """
    return next((key for flag in KEY_FLAGS if (key := value_of(flag, arguments))), "")


def check_port(host: str, port: int) -> None:
    """See that SGLang can listen where it is told to: it would find out itself only once the model is loaded.

    Raises:
        EngineError: another program listens there, or the address is not one of this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            # As servers do: connections of an earlier one that are not quite over are no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise EngineError(f"SGLang cannot listen at {host}:{port}: {error}") from error


def check_arguments(arguments: Sequence[str]) -> None:
    """Raises ConfigError for arguments of the operator that are ours to set or that cannot work."""
    ours = ("--model-path", "--host", "--port", "--speculative-")
    clash = [argument for argument in arguments if argument.startswith(ours)]
    if clash:
        raise ConfigError(
            f"server.arguments: {', '.join(clash)} belong to tide-daemon; use server.model_path, host, port and [draft]"
        )
    unable = [flag for flag in _NOT_ADAPTIVE if value_of(flag, arguments) is not None]
    if unable:
        raise ConfigError(f"server.arguments: SGLang has no adaptive draft steps with {', '.join(unable)}")
    for flag, reason in _ONE_ONLY.items():
        size = value_of(flag, arguments)
        if size not in (None, "1"):
            raise ConfigError(f"server.arguments: {flag} {size}: {reason}")


def check_dtype(model_path: Path, arguments: Sequence[str], device: str) -> None:
    """Raises ConfigError for a target that SGLang would run in float16, as far as its config.json tells.

    Drafts are bfloat16, which float16 does not hold exactly: a draft in float16 never reads back as what was sent.
    With `--dtype auto` SGLang takes the draft's type from the draft, so that bfloat16 weights would meet float16
    states.
    """
    if runs_in_float16(model_path, value_of("--dtype", launch(arguments, {}, device).arguments)):
        raise ConfigError(
            "server.arguments: the target would run in float16, which drafts cannot; add --dtype bfloat16, or "
            "--dtype float32 on a device without bfloat16"
        )

"""Environment and default flags for starting `sglang.launch_server`: additions on a CPU, nothing on a GPU.

SGLang's wheel runs on a CPU without AMX when a few variables are set, two packages it imports are stood in for, and an
attention backend is named that needs no GPU. A user's own variables and flags always win.
"""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_STAND_INS = Path(__file__).parent / "cpu" / "stand_ins"
_STAND_IN_FOLDERS = {"sgl_kernel": "kernel", "torchvision": "vision"}

CPU_ENVIRONMENT: Mapping[str, str] = {
    "SGLANG_USE_CPU_ENGINE": "1",
    # Speculative batches hit functions under torch.compile: the first one would compile for 30 s, and needs a compiler.
    "TORCHDYNAMO_DISABLE": "1",
    # One thread: two on two shared cores are slower. Spinning threads cost 10 to 30 times when cores are shared.
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "0",
    # oneDNN, and torch's layer over it, each keep a compiled kernel of 0.7 MB for every matrix shape, and each prompt
    # length is another shape. By default (1024) a process grows by a gigabyte; fewer cost 2 ms a new shape.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256",
    "LRU_CACHE_CAPACITY": "256",
}

CPU_FLAGS: Mapping[str, str | None] = {
    "--device": "cpu",
    "--disable-cuda-graph": None,
    # Named one by one they are not downgraded when the CPU has no AMX; `--attention-backend intel_amx` is.
    "--prefill-attention-backend": "intel_amx",
    "--decode-attention-backend": "intel_amx",
    # An idle SGLang polls, and on a CPU it would take that core from the trainer, or from another server.
    "--sleep-on-idle": None,
    # Else SGLang sizes the KV cache by the memory that is free.
    "--max-total-tokens": "16384",
}

WITHOUT_BF16: Mapping[str, str | None] = {
    # torch multiplies bfloat16 row by row there: 16 rows take 7 times as long as one, and twice as long as in float32
    # (AMD Zen 3). decisions/0047.
    "--dtype": "float32",
}


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start `python -m sglang.launch_server` with.

    Attributes:
        environment: the complete environment of the process.
        arguments: the user's arguments and behind them the defaults that they do not set.
        device: "cpu" or "gpu".
    """

    environment: Mapping[str, str]
    arguments: tuple[str, ...]
    device: str


def launch(arguments: Sequence[str], environment: Mapping[str, str] | None = None, device: str = "auto") -> Launch:
    """Complete a user's `sglang.launch_server` arguments and environment for the device they run on.

    Args:
        arguments: as for `python -m sglang.launch_server`.
        environment: of the parent; None for this process's own.
        device: "cpu", "gpu", or "auto" for what the machine has; `--device` in the arguments wins.
    """
    base = dict(os.environ if environment is None else environment)
    if not runs_on_cpu(arguments, device):
        return Launch(base, tuple(arguments), "gpu")
    for name, value in CPU_ENVIRONMENT.items():
        base.setdefault(name, value)
    paths = [*stand_in_paths(), base.get("PYTHONPATH", "")]
    base["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    completed = list(arguments)
    flags = {**CPU_FLAGS, **({} if multiplies_bf16() else WITHOUT_BF16)}
    for flag, default in flags.items():
        if value_of(flag, arguments) is None:
            completed += [flag] if default is None else [flag, default]
    return Launch(base, tuple(completed), "cpu")


def runs_on_cpu(arguments: Sequence[str], device: str = "auto") -> bool:
    """True when the CPU is asked for, or no device is named and the machine shows no CUDA or ROCm one."""
    named = value_of("--device", arguments) or device
    return not _has_gpu() if named == "auto" else named == "cpu"


def multiplies_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether torch's matrix products in bfloat16 are fast on this CPU: AVX-512, or Arm's bf16.

    The question is torch.ops.mkldnn._is_mkldnn_bf16_supported()'s, for a process that does not import torch. True where
    the CPU cannot be asked.
    """
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return True
    features = next((set(line.split()) for line in lines if line.startswith(("flags", "Features"))), None)
    return features is None or "bf16" in features or {"avx512bw", "avx512vl", "avx512dq"} <= features


def stand_in_paths() -> list[str]:
    """Folders to put on PYTHONPATH: one for each package that is not really installed."""
    return [str(_STAND_INS / folder) for package, folder in _STAND_IN_FOLDERS.items() if not _is_installed(package)]


def _is_installed(package: str) -> bool:
    """True when a real `package` can be imported; our stand-in, already on the path, does not count."""
    spec = importlib.util.find_spec(package)
    return spec is not None and not (spec.origin or "").startswith(str(_STAND_INS))


def _has_gpu(dev: Path = Path("/dev")) -> bool:
    """CUDA (a container may be given only its fourth device), ROCm, or either of them under WSL 2."""
    return (dev / "kfd").exists() or (dev / "dxg").exists() or any(dev.glob("nvidia[0-9]*"))


def value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """Value of `--flag value` or `--flag=value`; "" for a bare flag; None when it is absent."""
    for index, argument in enumerate(arguments):
        if argument == flag:
            following = arguments[index + 1] if index + 1 < len(arguments) else ""
            return "" if following.startswith("--") else following
        if argument.startswith(f"{flag}="):
            return argument.removeprefix(f"{flag}=")
    return None

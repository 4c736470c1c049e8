"""What a CPU run of SGLang is started with, and that a GPU run is left alone."""

import os
from pathlib import Path

import pytest
import torch

from tide_daemon.engine.sglang import launch_env
from tide_daemon.engine.sglang.launch_env import launch, multiplies_bf16, runs_on_cpu, stand_in_paths


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_env, "_has_gpu", lambda: True)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_env, "_has_gpu", lambda: False)


def test_a_gpu_run_is_left_as_it_is(gpu: None) -> None:
    """Not one flag and not one variable more."""
    started = launch(["--model-path", "m"], {"HOME": "/root"})
    assert started.device == "gpu"
    assert started.arguments == ("--model-path", "m")
    assert started.environment == {"HOME": "/root"}


def test_a_cpu_run_gets_flags_variables_and_stand_ins(no_gpu: None) -> None:
    """The two attention backends are named one by one, or SGLang would change them."""
    started = launch(["--model-path", "m"], {"PYTHONPATH": "/mine"})
    assert started.device == "cpu"
    assert started.arguments[:2] == ("--model-path", "m")
    flags = dict(zip(started.arguments[2:], started.arguments[3:], strict=False))
    assert flags["--device"] == "cpu"
    assert flags["--prefill-attention-backend"] == flags["--decode-attention-backend"] == "intel_amx"
    assert "--disable-cuda-graph" in started.arguments
    assert started.environment["SGLANG_USE_CPU_ENGINE"] == "1"
    assert started.environment["PYTHONPATH"].split(os.pathsep)[-1] == "/mine"


def test_the_users_own_choices_win(no_gpu: None) -> None:
    """Given as `--flag value`, as `--flag=value`, or in the environment."""
    given = ["--max-total-tokens=4096", "--decode-attention-backend", "torch_native", "--disable-cuda-graph"]
    started = launch(given, {"OMP_NUM_THREADS": "6"})
    assert started.environment["OMP_NUM_THREADS"] == "6"
    assert "--max-total-tokens" not in started.arguments
    assert started.arguments.count("--decode-attention-backend") == 1
    assert started.arguments.count("--disable-cuda-graph") == 1
    assert "intel_amx" in started.arguments  # still the default of prefill


_AVX512 = "processor : 0\nflags\t\t: fpu avx2 avx512bw avx512vl avx512dq\n"
_AVX2 = "processor : 0\nflags\t\t: fpu avx avx2 fma\n"


@pytest.mark.parametrize(
    ("cpuinfo", "fast"),
    [
        (_AVX512, True),
        (_AVX2, False),
        ("processor : 0\nFeatures\t: fp asimd bf16\n", True),
        ("processor : 0\nFeatures\t: fp asimd\n", False),
        ("processor : 0\n", True),
        (None, True),
    ],
)
def test_which_processors_multiply_bf16(tmp_path: Path, cpuinfo: str | None, fast: bool) -> None:
    """Where it is not said, SGLang's own choice stands."""
    path = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        path.write_text(cpuinfo)
    assert multiplies_bf16(path) is fast


def test_this_processor_is_judged_as_torch_does() -> None:
    """The list of features is torch's."""
    assert multiplies_bf16() is torch.ops.mkldnn._is_mkldnn_bf16_supported()


@pytest.mark.parametrize("fast", [True, False])
def test_float32_where_bf16_is_slow(no_gpu: None, monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    """Unless the user chose."""
    monkeypatch.setattr(launch_env, "multiplies_bf16", lambda: fast)
    assert ("float32" in launch([], {}).arguments) is not fast
    assert "float32" not in launch(["--dtype", "bfloat16"], {}).arguments


@pytest.mark.parametrize("given", [["--device", "cpu"], ["--device=cpu"]])
def test_cpu_can_be_asked_for_where_a_gpu_is(gpu: None, given: list[str]) -> None:
    """`--device cpu` counts more than what the machine has."""
    assert runs_on_cpu(given)
    assert not runs_on_cpu(["--device", "cuda"])
    assert not runs_on_cpu([])


def test_the_configured_device_counts_unless_the_arguments_name_one(no_gpu: None) -> None:
    """server.device = "gpu" where no device file is seen, and "cpu" beside a GPU."""
    assert launch([], {}, "gpu").device == "gpu"
    assert launch([], {}, "auto").device == launch([], {}, "cpu").device == "cpu"
    assert runs_on_cpu(["--device", "cpu"], "gpu")
    assert not runs_on_cpu(["--device=cuda"], "cpu")


@pytest.mark.parametrize(
    ("names", "found"),
    [(["nvidia3", "nvidiactl"], True), (["kfd"], True), (["dxg"], True), (["nvidiactl", "nvidia-uvm", "null"], False)],
)
def test_a_gpu_is_seen_by_its_device_files(tmp_path: Path, names: list[str], found: bool) -> None:
    """A container that was given the fourth GPU shows no nvidia0; control files alone are no GPU."""
    for name in names:
        (tmp_path / name).touch()
    assert launch_env._has_gpu(tmp_path) is found


def test_stand_ins_yield_to_real_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A package that is really installed is not shadowed; our own, already on the path, is not mistaken for it."""
    assert [Path(path).name for path in stand_in_paths()] == ["kernel", "vision"]
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(launch_env.importlib.sys.modules, "torchvision", raising=False)
    assert [Path(path).name for path in stand_in_paths()] == ["kernel"]

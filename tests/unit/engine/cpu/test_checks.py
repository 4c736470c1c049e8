"""Which engines the plug-in refuses, by what is in force in SGLang rather than by flags."""

from types import SimpleNamespace
from typing import Any

import pytest

from tide_daemon.engine.sglang import checks
from tide_daemon.errors import EngineError


def inspected(monkeypatch: pytest.MonkeyPatch, **changed: Any) -> checks.Facts:
    """The facts of a scheduler that is well but for what is changed."""
    given: dict[str, Any] = {
        "attn_dp_enabled": False, "nnodes": 1, "pp_size": 1, "tp_size": 1, "tp_rank": 0, "dp_rank": None,
        "dtype": "torch.bfloat16", "config": "/run/steps.json", "controller": SimpleNamespace(candidate_steps=[0, 1]),
    }  # fmt: skip
    given |= changed
    parallel = SimpleNamespace(**{name: given[name] for name in list(given)[:6]})
    monkeypatch.setattr(checks, "get_parallel", lambda: parallel)
    monkeypatch.setattr(checks, "get_spec", lambda: SimpleNamespace(speculative_adaptive_config=given["config"]))
    model_config = SimpleNamespace(hidden_size=8, vocab_size=64, model_path="/m", dtype=given["dtype"])
    layers = SimpleNamespace(model=SimpleNamespace(layers_to_capture=[2, 4, 6]))
    eagle = SimpleNamespace(eagle_config={"eagle_aux_hidden_state_layer_ids": [1, 3, 5]})
    draft_runner = SimpleNamespace(model_config=SimpleNamespace(hf_config=eagle))

    class EAGLEWorkerV2:
        topk = 1
        device = "cuda:0"
        adaptive_controller = given["controller"]
        target_worker = SimpleNamespace(model_runner=SimpleNamespace(model=layers, model_config=model_config))
        _draft_worker = SimpleNamespace(draft_runner=draft_runner, hot_token_id=None)

    scheduler = SimpleNamespace(
        model_worker=EAGLEWorkerV2(),
        spec_algorithm=SimpleNamespace(is_eagle3=lambda: True),
        disaggregation_mode=SimpleNamespace(name="NULL"),
    )
    return checks.inspect(scheduler, [])


def test_an_engine_that_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = inspected(monkeypatch)
    assert (facts.aux_layer_ids, facts.candidate_steps, facts.dtype) == ((1, 3, 5), (0, 1), "bfloat16")


def test_without_adaptive_steps_only_where_nobody_asked_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang drops them with a warning; somebody else's engine may be started without."""
    assert inspected(monkeypatch, controller=None, config=None).candidate_steps == ()
    with pytest.raises(EngineError, match="switched --speculative-adaptive off"):
        inspected(monkeypatch, controller=None)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"attn_dp_enabled": True}, "--attn-dp-size"),
        ({"nnodes": 2}, "--nnodes 2"),
        ({"dtype": "torch.float16"}, "--dtype bfloat16"),
    ],
)
def test_engines_that_are_refused(monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], words: str) -> None:
    with pytest.raises(EngineError, match=words):
        inspected(monkeypatch, **changed)

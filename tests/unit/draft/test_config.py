import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.draft.conftest import small_config
from tide_daemon.draft.config import DraftConfig, config_for_target
from tide_daemon.errors import DraftError

TARGET = {
    "hidden_size": 576,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
    "max_position_embeddings": 8192,
    "vocab_size": 49152,
}


def test_config_survives_its_own_json() -> None:
    """What is written is what is read."""
    config = config_for_target(TARGET, (2, 15, 28), 4096)
    assert config.num_key_value_heads == 9
    assert DraftConfig.from_json(config.to_json()) == config


def test_aux_layers_are_explicit_in_the_file() -> None:
    """SGLang reads the layer ids from eagle_config; its defaults are never relied on."""
    data = json.loads(small_config().to_json())
    assert data["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [0, 2, 3]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_hidden_layers", 2),
        ("tie_word_embeddings", True),
        ("attention_bias", True),
        ("norm_output", True),
        ("fc_norm", True),
        ("partial_rotary_factor", 0.5),
        ("rope_scaling", {"factor": 2.0}),
        ("rope_parameters", {"rope_type": "llama3", "rope_theta": 1.0}),
        ("architectures", ["LlamaForCausalLM"]),
        ("hidden_act", "gelu"),
        ("eagle_config", {"eagle_aux_hidden_state_layer_ids": [0, 2], "norm_before_fc": True}),
    ],
)
def test_variants_that_we_would_compute_differently_are_refused(field: str, value: object) -> None:
    """A field that changes the forward is an error, never ignored."""
    data = json.loads(small_config().to_json())
    data[field] = value
    with pytest.raises(DraftError):
        DraftConfig.from_json(json.dumps(data))


@pytest.mark.parametrize(
    "changes",
    [
        {"aux_layer_ids": (3,)},
        {"aux_layer_ids": (3, 2)},
        {"aux_layer_ids": (2, 2)},
        {"draft_vocab_size": 101},
        {"num_key_value_heads": 3},
        {"hidden_size": 0},
        {"vocab_size": 1 << 40},
        {"rms_norm_eps": float("nan")},
        {"rope_theta": float("inf")},
        {"head_dim": 7},
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, object]) -> None:
    """Sizes that do not fit together or are absurd give DraftError."""
    with pytest.raises(DraftError):
        small_config(**changes)


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda b: b.decode("latin-1")))
def test_any_text_gives_a_config_or_the_documented_error(text: str) -> None:
    """No other exception leaves the parser."""
    with contextlib.suppress(DraftError):
        DraftConfig.from_json(text)


@given(
    st.dictionaries(
        st.sampled_from(sorted(json.loads(small_config().to_json()))),
        st.none() | st.integers() | st.text() | st.floats() | st.booleans() | st.lists(st.integers()),
        max_size=4,
    )
)
def test_any_field_value_gives_a_config_or_the_documented_error(changes: dict[str, object]) -> None:
    """Wrong types and wild numbers in a real config are refused cleanly."""
    data = {**json.loads(small_config().to_json()), **changes}
    with contextlib.suppress(DraftError):
        DraftConfig.from_json(json.dumps(data))

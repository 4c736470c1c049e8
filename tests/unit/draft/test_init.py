import torch

from tide_daemon.draft.config import DraftConfig
from tide_daemon.draft.copying import CapturedRows
from tide_daemon.draft.init import initialise
from tide_daemon.draft.model import Eagle3Draft, rotary_tables
from tide_daemon.draft.vocab import map_from_ids

HIDDEN, VOCAB, DRAFT_VOCAB, AUX = 128, 300, 200, 3
CONFIG = DraftConfig(
    hidden_size=HIDDEN,
    target_hidden_size=HIDDEN,
    intermediate_size=160,
    num_attention_heads=8,
    num_key_value_heads=8,
    head_dim=64,
    rms_norm_eps=1e-5,
    rope_theta=1e5,
    max_position_embeddings=512,
    vocab_size=VOCAB,
    draft_vocab_size=DRAFT_VOCAB,
    aux_layer_ids=(0, 4, 8),
)
VOCAB_MAP = map_from_ids(torch.arange(DRAFT_VOCAB) + 50, VOCAB)
GENERATOR = torch.Generator().manual_seed(3)
EMBED = torch.randn(VOCAB, HIDDEN, generator=GENERATOR) * 0.1
MIX = torch.randn(HIDDEN, HIDDEN, generator=GENERATOR)


def states(tokens: torch.Tensor) -> torch.Tensor:
    """Aux states of a made-up target: the lowest layer knows the token, the others are noise."""
    noise = torch.randn(len(tokens), 2 * HIDDEN, generator=GENERATOR)
    return torch.cat([EMBED[tokens] @ MIX + 0.05 * noise[:, :HIDDEN], noise * 3], dim=1)


def first_drafts(draft: Eagle3Draft, tokens: torch.Tensor) -> torch.Tensor:
    """Target ids that the draft says after each token but the first."""
    draft = draft.float()
    hidden = draft.fc(states(tokens[:-1]))
    attention = draft.midlayer.self_attn
    cos, sin = rotary_tables(torch.arange(len(tokens) - 1), CONFIG)
    q, k, v = attention.qkv(draft.midlayer.attention_input(hidden, EMBED[tokens[1:]])[None], cos, sin)
    attended = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
    )
    carried = draft.midlayer.after_attention(hidden, attended[0].transpose(0, 1).flatten(1))
    return VOCAB_MAP.target_ids[draft.logits(carried).argmax(-1)]


def made(rows: CapturedRows | None) -> Eagle3Draft:
    return initialise(CONFIG, VOCAB_MAP, EMBED, EMBED, torch.ones(HIDDEN), rows=rows)


def test_fresh_draft_repeats_what_followed_a_token_before() -> None:
    """On a text that says the same thing twice, the untrained draft knows the second time by heart."""
    seen = torch.randint(50, 250, (3000,), generator=GENERATOR)
    draft = made(CapturedRows(states(seen), seen))
    phrase = torch.randperm(DRAFT_VOCAB, generator=GENERATOR)[:40] + 50
    text = torch.cat([phrase, phrase])
    with torch.no_grad():
        hits = (first_drafts(draft, text)[:-1] == text[2:])[40:].float().mean()
        without = (first_drafts(made(None), text)[:-1] == text[2:])[40:].float().mean()
    assert hits > 0.8
    assert without < 0.2


def test_same_seed_gives_the_same_draft() -> None:
    """A first draft is a function of its inputs and its seed."""
    seen = torch.randint(50, 250, (1000,), generator=GENERATOR)
    rows = CapturedRows(states(seen), seen)
    first, second = made(rows).state_dict(), made(rows).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_every_weight_is_finite_however_poor_the_rows() -> None:
    """Rows of one token, or of constant states, give a draft, if not a good one."""
    tokens = torch.full((300,), 60)
    for aux in (states(tokens), torch.zeros(300, AUX * HIDDEN), torch.full((300, AUX * HIDDEN), 1e4)):
        draft = made(CapturedRows(aux, tokens))
        assert all(bool(torch.isfinite(p).all()) for p in draft.parameters())


def test_a_last_layer_of_other_shapes_is_left_out() -> None:
    """Parts that do not fit the draft are not copied, and those that do are."""
    layer = {
        name: torch.ones(shape)
        for name, shape in {
            "self_attn.q_proj": (7, HIDDEN),
            "self_attn.k_proj": (64, HIDDEN),
            "self_attn.v_proj": (64, HIDDEN),
            "self_attn.o_proj": (HIDDEN, 7),
            "mlp.gate_proj": (160, HIDDEN),
            "mlp.up_proj": (160, HIDDEN),
            "mlp.down_proj": (HIDDEN, 160),
            "input_layernorm": (HIDDEN,),
            "post_attention_layernorm": (HIDDEN,),
        }.items()
    }
    draft = initialise(CONFIG, VOCAB_MAP, EMBED, EMBED, torch.ones(HIDDEN), last_layer=layer)
    assert bool((draft.midlayer.mlp.gate_proj.weight == 1).all())
    assert not bool((draft.midlayer.self_attn.o_proj.weight == 1).any())

"""Sampled verification keeps the target's distribution, whatever the draft proposes."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.unit.trainer.pretend_device import DEVICE, PretendDevice
from tide_daemon.engine.sglang import sampling

VOCAB = 5
NUM_REQUESTS = 4000
NUM_TOKENS = 3
MAX_Z = 5.0


def info(num_requests: int, **given: Any) -> SimpleNamespace:
    """The fields of SGLang's SamplingBatchInfo that sampling reads."""
    fields: dict[str, Any] = {
        "temperatures": torch.ones(num_requests, 1),
        "top_ks": torch.full((num_requests,), VOCAB, dtype=torch.int32),
        "top_ps": torch.ones(num_requests),
        "min_ps": torch.zeros(num_requests),
        "need_top_k_sampling": False,
        "need_top_p_sampling": False,
        "need_min_p_sampling": False,
        "sampling_seed": None,
        "max_top_k": None,
        "is_all_greedy": False,
    }
    return SimpleNamespace(**(fields | given))


def markov_target(seed: int = 3) -> torch.Tensor:
    """Logits of the next token given the last one, [VOCAB, VOCAB]: a target whose distribution is known."""
    return 1.5 * torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(seed))


def chain_drafts(last: torch.Tensor, proposal: torch.Tensor, num_drafts: int) -> torch.Tensor:
    """Candidates [B, 1 + num_drafts]: the last token, then the argmax chain of a draft (proposal[token] = next)."""
    nodes = [last]
    for _ in range(num_drafts):
        nodes.append(proposal[nodes[-1]])
    return torch.stack(nodes, dim=1)


def decode(target: torch.Tensor, proposal: torch.Tensor, sampling_info: SimpleNamespace, choose: Any) -> torch.Tensor:
    """NUM_TOKENS tokens a request, by speculative steps with 2 drafts; [B, NUM_TOKENS]."""
    from sgl_kernel import build_tree_kernel_efficient_cpu, verify_tree_greedy_cpu

    num_nodes = 3
    emitted: list[list[int]] = [[] for _ in range(NUM_REQUESTS)]
    last = torch.zeros(NUM_REQUESTS, dtype=torch.int64)
    links = [torch.full((NUM_REQUESTS, num_nodes), -1) for _ in range(3)]
    build_tree_kernel_efficient_cpu(
        torch.empty(NUM_REQUESTS, 0), torch.empty(NUM_REQUESTS, 2), torch.zeros(NUM_REQUESTS, dtype=torch.int64),
        torch.empty(NUM_REQUESTS * 9, dtype=torch.bool), torch.empty(NUM_REQUESTS * 3, dtype=torch.int64), *links,
        1, 3, num_nodes, 1,
    )  # fmt: skip
    while min(len(tokens) for tokens in emitted) < NUM_TOKENS:
        candidates = chain_drafts(last, proposal, num_nodes - 1)
        logits = target[candidates.flatten()]
        positions = torch.arange(logits.shape[0])
        choices = choose(logits, positions, sampling_info, candidates)
        predicts = torch.zeros(NUM_REQUESTS * num_nodes, dtype=torch.int64)
        accept_index = torch.full((NUM_REQUESTS, num_nodes), -1)
        accepted = torch.empty(NUM_REQUESTS, dtype=torch.int64)
        verify_tree_greedy_cpu(
            predicts, accept_index, accepted, candidates=candidates, retrive_index=links[0],
            retrive_next_token=links[1], retrive_next_sibling=links[2], target_predict=choices,
        )  # fmt: skip
        for b, rows in enumerate(accept_index.tolist()):
            emitted[b] += [int(predicts[row]) for row in rows if row >= 0]
        last = torch.tensor([tokens[-1] for tokens in emitted])
    return torch.tensor([tokens[:NUM_TOKENS] for tokens in emitted])


def deviation(tokens: torch.Tensor, next_probs: torch.Tensor) -> float:
    """How unlikely the token triples are under the target: chi-square as a standard normal deviate.

    Wilson and Hilferty's cube-root approximation; cells of probability 0 must be empty, else infinity.
    """
    first = next_probs[0]
    joint = first.view(-1, 1, 1) * next_probs.view(VOCAB, VOCAB, 1) * next_probs.view(1, VOCAB, VOCAB)
    cells = tokens[:, 0] * VOCAB**2 + tokens[:, 1] * VOCAB + tokens[:, 2]
    seen = torch.bincount(cells, minlength=VOCAB**3).double()
    wanted = joint.flatten().double() * NUM_REQUESTS
    if seen[wanted == 0].sum() > 0:
        return math.inf
    # Rare cells are pooled: the chi-square statistic wants a few expected counts in each.
    rare = wanted < 5
    seen = torch.cat([seen[~rare], seen[rare].sum().view(1)])
    wanted = torch.cat([wanted[~rare], wanted[rare].sum().view(1).clamp(min=1e-9)])
    statistic = float(((seen - wanted) ** 2 / wanted).sum())
    degrees = seen.numel() - 1
    return ((statistic / degrees) ** (1 / 3) - (1 - 2 / (9 * degrees))) / math.sqrt(2 / (9 * degrees))


def drawn(logits: torch.Tensor, positions: torch.Tensor, sampling_info: Any, candidates: torch.Tensor) -> torch.Tensor:
    return sampling.draw(logits, positions, sampling_info, candidates, chain=True)


def drawn_as_tree(
    logits: torch.Tensor, positions: torch.Tensor, sampling_info: Any, candidates: torch.Tensor
) -> torch.Tensor:
    return sampling.draw(logits, positions, sampling_info, candidates, chain=False)


def argmax(logits: torch.Tensor, positions: torch.Tensor, sampling_info: Any, candidates: torch.Tensor) -> torch.Tensor:
    return logits.argmax(-1).view(candidates.shape)


def accept_drafts_too_easily(
    logits: torch.Tensor, positions: torch.Tensor, sampling_info: Any, candidates: torch.Tensor
) -> torch.Tensor:
    """A mutant: a draft that is among the two likeliest tokens is taken."""
    choices = drawn(logits, positions, sampling_info, candidates)
    top = logits.topk(2, dim=-1).indices.view(*candidates.shape, 2)
    following = candidates[:, 1:]
    easy = (top[:, :-1] == following.unsqueeze(-1)).any(-1)
    choices[:, :-1] = torch.where(easy, following, choices[:, :-1])
    missing = choices == -1
    choices[missing] = logits.argmax(-1).view(candidates.shape)[missing]
    return choices


GOOD_DRAFT = markov_target().argmax(-1)
BAD_DRAFT = markov_target().argmin(-1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(11)


@pytest.mark.parametrize("proposal", [GOOD_DRAFT, BAD_DRAFT], ids=["good draft", "bad draft"])
@pytest.mark.parametrize("choose", [drawn, drawn_as_tree])
def test_output_has_the_targets_distribution(proposal: torch.Tensor, choose: Any) -> None:
    """Chi-square over triples of tokens; a good and a bad draft change the speed only."""
    target = markov_target()
    tokens = decode(target, proposal, info(NUM_REQUESTS), choose)
    assert abs(deviation(tokens, torch.softmax(target, -1))) < MAX_Z


@pytest.mark.parametrize("choose", [argmax, accept_drafts_too_easily])
def test_the_chi_square_sees_wrong_verification(choose: Any) -> None:
    """Greedy verification, and one that accepts too much, are far off."""
    target = markov_target()
    tokens = decode(target, GOOD_DRAFT, info(NUM_REQUESTS), choose)
    assert deviation(tokens, torch.softmax(target, -1)) > 4 * MAX_Z


def test_temperature_and_filters_apply() -> None:
    """Temperature, top-k and top-p shape the distribution as without speculation."""
    target = markov_target()
    given = info(
        NUM_REQUESTS,
        temperatures=torch.full((NUM_REQUESTS, 1), 0.7),
        top_ks=torch.full((NUM_REQUESTS,), 3, dtype=torch.int32),
        top_ps=torch.full((NUM_REQUESTS,), 0.8),
        need_top_k_sampling=True,
        need_top_p_sampling=True,
        max_top_k=3,
    )
    probs = torch.softmax(target / 0.7, -1)
    ordered, order = probs.sort(-1, descending=True)
    ordered[:, 3:] = 0
    ordered[ordered.cumsum(-1) - ordered > 0.8] = 0
    wanted = torch.zeros_like(probs).scatter_(-1, order, ordered / ordered.sum(-1, keepdim=True))
    assert abs(deviation(decode(target, GOOD_DRAFT, given, drawn), wanted)) < MAX_Z


def test_min_p_applies() -> None:
    """Tokens below min-p times the likeliest are never drawn."""
    logits = torch.tensor([[0.0, -0.5, -3.0, -4.0, -5.0]]).repeat(2000, 1)
    given = info(2000, min_ps=torch.full((2000,), 0.3), need_min_p_sampling=True)
    tokens = sampling.sample(logits, torch.arange(2000), given, torch.arange(2000))
    assert set(tokens.tolist()) == {0, 1}


def test_greedy_requests_in_a_sampled_batch_stay_greedy() -> None:
    """SGLang writes temperature 0 as top-k 1."""
    logits = torch.randn(6, VOCAB)
    top_ks = torch.tensor([1, VOCAB, 1, VOCAB, 1, VOCAB], dtype=torch.int32)
    given = info(6, top_ks=top_ks, need_top_k_sampling=True)
    for _ in range(20):
        tokens = sampling.sample(logits, torch.arange(6), given, torch.arange(6))
        assert torch.equal(tokens[::2], logits[::2].argmax(-1))


def test_a_seed_gives_the_tokens_of_plain_decoding() -> None:
    """With a seed a token depends on seed, position and distribution: a chain draws what single rows draw."""
    given = info(2, sampling_seed=torch.tensor([5, 6]))
    logits = torch.randn(6, VOCAB)
    positions = torch.tensor([10, 11, 12, 20, 21, 22])
    requests = torch.tensor([0, 0, 0, 1, 1, 1])
    alone = sampling.sample(logits, positions, given, requests).view(2, 3)
    candidates = torch.cat([torch.zeros(2, 1, dtype=torch.int64), alone[:, :2]], dim=1)
    assert torch.equal(sampling.draw(logits, positions, given, candidates, chain=True), alone)


def test_a_chain_stops_drawing_behind_a_mismatch() -> None:
    """Nodes that no walk reaches are not drawn: each costs a pass over the vocabulary."""
    logits = torch.full((6, VOCAB), -100.0)
    logits[:, 2] = 100.0  # every draw is 2
    candidates = torch.tensor([[0, 2, 2], [0, 1, 2]])
    choices = sampling.draw(logits, torch.arange(6), info(2), candidates, chain=True)
    assert choices.tolist() == [[2, 2, 2], [2, -1, -1]]


@pytest.mark.parametrize("chain", [True, False])
@pytest.mark.parametrize("filtered", [True, False])
def test_draws_on_the_device_of_the_logits(chain: bool, filtered: bool) -> None:
    """As on ROCm: nothing is forgotten on the host, and every node is drawn rather than the host waited for."""
    certain = torch.tensor([[2, 0, 1], [4, 3, 0]])
    logits = torch.full((6, VOCAB), -100.0).scatter(1, certain.view(-1, 1), 100.0)
    given = info(2, max_top_k=3 if filtered else None, need_top_k_sampling=filtered, need_top_p_sampling=filtered)
    with PretendDevice():
        for name, value in vars(given).items():
            setattr(given, name, value.to(DEVICE) if isinstance(value, torch.Tensor) else value)
        candidates = torch.tensor([[0, 2, 0], [0, 1, 1]]).to(DEVICE)
        choices = sampling.draw(logits.to(DEVICE), torch.arange(6, device=DEVICE), given, candidates, chain=chain)
        assert choices.device == DEVICE and choices.dtype == torch.int64
        assert choices.cpu().tolist() == certain.tolist()


@pytest.mark.parametrize(("cpu", "hip", "hooked"), [(True, False, 2), (False, True, 2), (False, False, 0)])
def test_hooked_where_sglang_verifies_greedily(
    monkeypatch: pytest.MonkeyPatch, cpu: bool, hip: bool, hooked: int
) -> None:
    import sglang.srt.utils as utils

    monkeypatch.setattr(utils, "is_cpu", lambda: cpu)
    monkeypatch.setattr(utils, "is_hip", lambda: hip)
    targets: list[str] = []
    assert sampling.register(SimpleNamespace(register=lambda target, *_: targets.append(target))) == targets
    assert len(targets) == hooked


def test_hooks_draw_only_inside_a_sampled_verification() -> None:
    """Greedy batches and idle ones keep SGLang's own choice; an error inside leaves nothing behind."""
    seen: list[Any] = []

    def walk(*args: Any, **kwargs: Any) -> None:
        seen.append(kwargs["target_predict"])

    def verify(verify_input: Any, batch: Any, logits_output: Any) -> None:
        batch_size, num_nodes = 2, 2
        candidates = torch.zeros(batch_size, num_nodes, dtype=torch.int64)
        sampling._walk(walk, candidates=candidates, target_predict="argmax", topk=1)
        if batch.fails:
            raise RuntimeError("inside")

    logits = SimpleNamespace(next_token_logits=torch.randn(4, VOCAB))
    verify_input = SimpleNamespace(positions=torch.arange(4))

    def batch(greedy: bool, idle: bool = False, fails: bool = False) -> SimpleNamespace:
        mode = SimpleNamespace(is_idle=lambda: idle)
        return SimpleNamespace(forward_mode=mode, sampling_info=info(2, is_all_greedy=greedy), fails=fails)

    sampling._eagle_sample(verify, verify_input, batch(greedy=True), logits)
    sampling._eagle_sample(verify, verify_input, batch(greedy=False, idle=True), logits)
    assert seen == ["argmax", "argmax"]
    before = logits.next_token_logits.clone()
    sampling._eagle_sample(verify, verify_input, batch(greedy=False), logits)
    assert isinstance(seen[2], torch.Tensor) and torch.equal(logits.next_token_logits, before)
    with pytest.raises(RuntimeError, match="inside"):
        sampling._eagle_sample(verify, verify_input, batch(greedy=False, fails=True), logits)
    sampling._walk(walk, candidates=torch.zeros(1, 1), target_predict="argmax", topk=1)
    assert seen[-1] == "argmax"

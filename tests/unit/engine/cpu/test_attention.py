"""The attention stand-ins against a loop over requests, heads and rows."""

import pytest
import torch

BLOCK = 64


class Cache:
    """A paged cache filled with random keys and values, slots of a request scattered."""

    def __init__(self, lengths: list[int], kv_heads: int, head_dim: int, dtype: torch.dtype, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        num_slots = sum(lengths) + 10
        self.keys = torch.randn(num_slots, kv_heads, head_dim, generator=generator).to(dtype)
        self.values = torch.randn(num_slots, kv_heads, head_dim, generator=generator).to(dtype)
        # Rows of other requests hold stale slots beyond a request's end, as in the pool.
        self.req_to_token = torch.randint(0, num_slots, (len(lengths) + 3, max(lengths) + 9), generator=generator)
        self.req_to_token = self.req_to_token.to(torch.int32)
        self.rows = torch.randperm(len(lengths) + 3, generator=generator)[: len(lengths)]
        free = torch.randperm(num_slots, generator=generator).to(torch.int32)
        for row, length in zip(self.rows.tolist(), lengths, strict=True):
            self.req_to_token[row, :length], free = free[:length], free[length:]
        self.seq_lens = torch.tensor(lengths)

    def of(self, request: int) -> tuple[torch.Tensor, torch.Tensor]:
        slots = self.req_to_token[self.rows[request], : self.seq_lens[request]].long()
        return self.keys[slots].double(), self.values[slots].double()


def expected(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, visible: torch.Tensor, scaling: float, cap: float = 0.0
) -> torch.Tensor:
    """Attention of q [N, Hq, D] over one request, head by head; visible [N, L]."""
    group = q.shape[1] // keys.shape[1]
    out = torch.zeros(q.shape, dtype=torch.float64)
    for head in range(q.shape[1]):
        scores = q[:, head].double() @ keys[:, head // group].T * scaling
        if cap:
            scores = cap * torch.tanh(scores / cap)
        weights = torch.softmax(scores.masked_fill(~visible, float("-inf")), dim=-1)
        out[:, head] = weights @ values[:, head // group]
    return out


def causal(num_rows: int, length: int) -> torch.Tensor:
    return torch.arange(length) < torch.arange(length - num_rows + 1, length + 1).view(-1, 1)


def assert_close(actual: torch.Tensor, wanted: torch.Tensor) -> None:
    tolerance = 3e-2 if actual.dtype == torch.bfloat16 else 2e-5
    torch.testing.assert_close(actual.double(), wanted, atol=tolerance, rtol=tolerance)


def decode(cache: Cache, q: torch.Tensor, of_pass: object = None, **rare: object) -> torch.Tensor:
    from sgl_kernel import decode_attention_cpu

    last = cache.req_to_token[cache.rows, cache.seq_lens - 1].long()
    k, v = cache.keys[last].clone(), cache.values[last].clone()
    cache.keys[last], cache.values[last] = 7.0, 7.0  # to be written by the operator
    o = torch.full_like(q, float("nan"))
    given: dict[str, object] = {"scaling": 0.2, "logit_cap": 0.0, **rare}
    decode_attention_cpu(
        q, cache.keys, cache.values, 1.0, 1.0, o, k, v, last, of_pass, cache.req_to_token, cache.rows, cache.seq_lens,
        **given,
    )  # fmt: skip
    return o


def extend(
    cache: Cache, q: torch.Tensor, num_rows: list[int], tree: torch.Tensor | None = None, is_causal: bool = True
) -> torch.Tensor:
    from sgl_kernel import extend_attention_cpu

    o = torch.full_like(q, float("nan"))
    extends = torch.tensor(num_rows, dtype=torch.int32)
    starts = (torch.cumsum(extends, 0) - extends).to(torch.int32)
    extend_attention_cpu(
        q, None, None, o, cache.keys, cache.values, 1.0, 1.0, cache.req_to_token, cache.rows, cache.seq_lens, extends,
        starts, max(num_rows), 0.2, 0.0, tree_mask=tree, is_causal=is_causal,
    )  # fmt: skip
    return o


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads"), [(9, 3), (4, 4), (8, 1)])
@pytest.mark.parametrize("lengths", [[1], [40], [5, 77, 32, 33]])
def test_decode_attends_all_keys_of_its_request(
    lengths: list[int], heads: int, kv_heads: int, dtype: torch.dtype
) -> None:
    """Grouped heads, ragged lengths, and the new key and value are stored first."""
    cache = Cache(lengths, kv_heads, 64, dtype)
    wanted_cache = [tuple(t.clone() for t in cache.of(b)) for b in range(len(lengths))]
    q = torch.randn(len(lengths), heads, 64).to(dtype)
    out = decode(cache, q)
    for b, length in enumerate(lengths):
        keys, values = cache.of(b)
        assert torch.equal(keys, wanted_cache[b][0]) and torch.equal(values, wanted_cache[b][1])
        visible = torch.ones(1, length, dtype=torch.bool)
        assert_close(out[b : b + 1], expected(q[b : b + 1], keys, values, visible, 0.2))


def test_decode_plans_anew_for_each_pass() -> None:
    """The same lengths tensor, advanced in place as SGLang's scheduler does, is seen by the next pass."""
    cache = Cache([8, 20], 1, 16, torch.float32)
    q = torch.randn(2, 2, 16)
    one_pass = object()
    first, again = decode(cache, q, one_pass), decode(cache, q, one_pass)
    assert torch.equal(first, again)
    cache.seq_lens -= 3
    out = decode(cache, q, object())
    for b in range(2):
        keys, values = cache.of(b)
        visible = torch.ones(1, keys.shape[0], dtype=torch.bool)
        assert_close(out[b : b + 1], expected(q[b : b + 1], keys, values, visible, 0.2))


def test_decode_caps_logits() -> None:
    """A logit cap is a scaled tanh over the scores."""
    cache = Cache([30], 2, 16, torch.float32)
    q = 10 * torch.randn(1, 4, 16)
    keys, values = cache.of(0)
    out = decode(cache, q, logit_cap=2.0)
    assert_close(out, expected(q, keys, values, torch.ones(1, 30, dtype=torch.bool), 0.2, cap=2.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("lengths", "num_rows"),
    [
        ([6], [6]),  # a prompt from nothing
        ([70, 44], [70, 44]),  # ragged prompts, many rows
        ([90, 50, 33], [40, 7, 1]),  # later chunks over a prefix
        ([50, 21, 64], [4, 4, 4]),  # verification of chains of 3
        ([64, 4], [4, 4]),  # one request has no prefix
    ],
)
def test_extend_is_causal_over_prefix_and_rows(lengths: list[int], num_rows: list[int], dtype: torch.dtype) -> None:
    """Row i of a request sees its prefix, the rows before it and itself."""
    cache = Cache(lengths, 3, 64, dtype)
    q = torch.randn(sum(num_rows), 9, 64).to(dtype)
    out = extend(cache, q, num_rows)
    start = 0
    for b, (length, rows) in enumerate(zip(lengths, num_rows, strict=True)):
        wanted = expected(q[start : start + rows], *cache.of(b), causal(rows, length), 0.2)
        assert_close(out[start : start + rows], wanted)
        start += rows


def test_extend_skips_requests_without_rows() -> None:
    """A request that extends by nothing leaves the others' rows where they are."""
    cache = Cache([20, 9, 31], 1, 16, torch.float32)
    q = torch.randn(5, 2, 16)
    out = extend(cache, q, [2, 0, 3])
    assert_close(out[:2], expected(q[:2], *cache.of(0), causal(2, 20), 0.2))
    assert_close(out[2:], expected(q[2:], *cache.of(2), causal(3, 31), 0.2))


def test_extend_without_causality_sees_every_key() -> None:
    """Encoder-only attention."""
    cache = Cache([12, 12], 1, 16, torch.float32)
    q = torch.randn(6, 2, 16)
    out = extend(cache, q, [3, 3], is_causal=False)
    for b in range(2):
        rows = slice(3 * b, 3 * b + 3)
        assert_close(out[rows], expected(q[rows], *cache.of(b), torch.ones(3, 12, dtype=torch.bool), 0.2))


@pytest.mark.parametrize("lengths", [[30, 41], [30, 30]])
def test_extend_follows_a_tree_mask(lengths: list[int]) -> None:
    """A draft sees the prefix, its ancestors and itself; not its siblings."""
    cache = Cache(lengths, 2, 32, torch.float32)
    tree = torch.eye(4, dtype=torch.bool)
    tree[:, 0] = True
    tree[3, 1] = True  # 0 - 1 - 3, 0 - 2
    other = tree.clone()
    other[3, 1], other[3, 2] = False, True
    q = torch.randn(8, 4, 32)
    out = extend(cache, q, [4, 4], tree=torch.cat([tree.flatten(), other.flatten()]))
    for b, mask in enumerate([tree, other]):
        visible = torch.cat([torch.ones(4, lengths[b] - 4, dtype=torch.bool), mask], dim=1)
        rows = slice(4 * b, 4 * b + 4)
        assert_close(out[rows], expected(q[rows], *cache.of(b), visible, 0.2))


def test_extend_finds_each_tree_mask_when_trees_differ_in_size() -> None:
    """Masks lie back to back, one block of rows x rows a request."""
    cache, sizes = Cache([20, 31, 26], 2, 32, torch.float32), [3, 5, 2]
    trees = [torch.eye(size, dtype=torch.bool) for size in sizes]
    q = torch.randn(sum(sizes), 4, 32)
    out = extend(cache, q, sizes, tree=torch.cat([tree.flatten() for tree in trees]))
    for b, (start, size) in enumerate(zip([0, 3, 8], sizes, strict=True)):
        keys, values = cache.of(b)
        visible = torch.cat([torch.ones(size, keys.shape[0] - size, dtype=torch.bool), trees[b]], dim=1)
        rows = slice(start, start + size)
        assert_close(out[rows], expected(q[rows], keys, values, visible, 0.2))


def test_float32_rows_do_not_depend_on_their_number() -> None:
    """Verification of 4 rows and 4 single rows agree to float32 rounding: speculation is lossless there."""
    cache = Cache([60], 3, 64, torch.float32)
    q = torch.randn(4, 9, 64)
    together = extend(cache, q, [4])
    for row in range(4):
        cache.seq_lens = torch.tensor([57 + row])
        alone = extend(cache, q[row : row + 1], [1])
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("rare", [{"is_cross_attention": True}, {"sliding_window": 8}, {"sinks": torch.zeros(2)}])
def test_rare_attention_is_refused(rare: dict[str, object]) -> None:
    """What the stand-in does not do is an error that says so, not a wrong result."""
    with pytest.raises(NotImplementedError, match="stand-in"):
        decode(Cache([4], 1, 16, torch.float32), torch.randn(1, 2, 16), **rare)

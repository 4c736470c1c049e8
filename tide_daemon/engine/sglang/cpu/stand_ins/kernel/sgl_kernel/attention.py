"""The two attention operators of SGLang's CPU backend, over its paged KV cache.

Caller: sglang/srt/layers/attention/intel_amx_backend.py, forward_decode and forward_extend.

Letters: B requests, T query rows of all requests, N query rows of one request, L keys of one request (padded to the
longest of the batch and then to a multiple of 32), Hq query heads, Hk key/value heads, G = Hq / Hk, D head size.

A request's keys are scattered over the cache: slot `req_to_token[req, p]` holds position p. One padded index over the
whole batch and its heads (plan.py) gathers them as [B * Hk, L, D], which two batched products take as they are: slicing
or permuting a bfloat16 operand makes the product copy it. What was found to matter (one thread, bfloat16, 256 keys):

- a product of a shape not seen before costs twice as much (oneDNN generates code for it), and L grows at every step:
  hence the padding;
- scaled_dot_product_attention is 2 to 4 times slower than product, softmax, product for a few rows, faster for many;
- masking every score costs as much as the softmax: only keys that some row must not see are masked.

Products are in the cache's type, softmax is in float32.
"""

import torch
from sgl_kernel.plan import Plan, plan_of_decode, plans_of_extend

# From this many query rows of one request on, scaled_dot_product_attention is faster: prefill.
_MANY_ROWS = 32
_block = torch.empty(0)


def decode_attention_cpu(
    q: torch.Tensor,
    k_buffer: torch.Tensor,
    v_buffer: torch.Tensor,
    k_scale: float,
    v_scale: float,
    o: torch.Tensor,
    k: torch.Tensor | None,
    v: torch.Tensor | None,
    cache_loc: torch.Tensor,
    attn_logits: torch.Tensor,
    req_to_token: torch.Tensor,
    req_pool_indices: torch.Tensor,
    seq_lens: torch.Tensor,
    scaling: float,
    logit_cap: float,
    is_cross_attention: bool = False,
    sliding_window: int = 0,
    encoder_lens: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
) -> None:
    """Write one new key and value a request into the cache, then attend one query row a request.

    Args:
        q: [B, Hq, D].
        k_buffer: [slots, Hk, D], written at `cache_loc` when `k` is given; v_buffer likewise.
        k_scale: scale of a float8 cache; only 1.0 is supported. v_scale likewise.
        o: [B, Hq, D], the output, written in place.
        k: [B, Hk, D] or None when the caller has stored it; v likewise.
        cache_loc: [B], the slots of the new keys.
        attn_logits: scratch of the compiled kernel. Here only its identity counts: the caller makes one for each
            forward pass and hands it to all layers, so the plan of the first layer serves them all.
        req_to_token: [rows, positions] int32, cache slot of each position.
        req_pool_indices: [B], the row of each request.
        seq_lens: [B], keys of each request, the new one included.
        logit_cap: 0 for none, else scores become cap * tanh(score / cap).

    Raises:
        NotImplementedError: cross attention, a sliding window, sinks or a scaled cache.
    """
    _refuse_rare(is_cross_attention, sliding_window, sinks, k_scale, v_scale)
    if k is not None:
        k_buffer[cache_loc] = k
        v_buffer[cache_loc] = v
    plan = plan_of_decode(attn_logits, req_to_token, req_pool_indices, seq_lens, k_buffer.shape[1])
    _attend(q, o, k_buffer, v_buffer, plan, scaling, logit_cap)


def extend_attention_cpu(
    q: torch.Tensor,
    k: torch.Tensor | None,
    v: torch.Tensor | None,
    o: torch.Tensor,
    k_buffer: torch.Tensor,
    v_buffer: torch.Tensor,
    k_scale: float,
    v_scale: float,
    req_to_token: torch.Tensor,
    req_pool_indices: torch.Tensor,
    seq_lens: torch.Tensor,
    extend_seq_lens: torch.Tensor,
    extend_start_loc: torch.Tensor,
    max_len_extend: int,
    scaling: float,
    logit_cap: float,
    is_cross_attention: bool = False,
    sliding_window: int = 0,
    encoder_lens: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    tree_mask: torch.Tensor | None = None,
    is_causal: bool = True,
) -> None:
    """Attend several query rows a request: prefill, chunked prefill over a prefix, verification, draft extend.

    The rows of request b are q[extend_start_loc[b] :][: extend_seq_lens[b]], the last positions of its seq_lens[b]
    keys. The caller has stored their keys and values in the cache already, so `k` and `v` are not read.

    Args:
        q: [T, Hq, D].
        o: [T, Hq, D], the output, written in place. Rows that belong to no request keep their content.
        seq_lens: [B], keys of each request, the extended ones included.
        extend_seq_lens: [B]. The caller makes this tensor and `seq_lens` anew for each forward pass and hands them to
            all layers: as long as both are the same objects, the plan of the first layer serves.
        tree_mask: flat bool, one [N, N] block a request with N = extend_seq_lens[b]: row i sees draft j. The prefix
            is visible to all (sglang.kernels.ops.speculative.spec_tree.TreeMaskMode.QLEN_ONLY). None for a chain.
        is_causal: False makes every key visible to every row of its request.
        Others: as for `decode_attention_cpu`.

    Raises:
        NotImplementedError: cross attention, a sliding window, sinks or a scaled cache.
    """
    _refuse_rare(is_cross_attention, sliding_window, sinks, k_scale, v_scale)
    lengths = (seq_lens, extend_seq_lens, extend_start_loc)
    for plan in plans_of_extend(lengths, req_to_token, req_pool_indices, tree_mask, is_causal, k_buffer.shape[1]):
        _attend(q[plan.rows], o[plan.rows], k_buffer, v_buffer, plan, scaling, logit_cap)


def _refuse_rare(
    is_cross_attention: bool, sliding_window: int, sinks: torch.Tensor | None, k_scale: float, v_scale: float
) -> None:
    if is_cross_attention or sliding_window > 0 or sinks is not None or k_scale != 1.0 or v_scale != 1.0:
        raise NotImplementedError(
            "the CPU stand-in of sgl_kernel has no cross attention, sliding window, sinks or float8 cache: "
            "serve this model on a GPU, or with SGLang's own CPU kernels built from source"
        )


def _gathered(cache: torch.Tensor, plan: Plan, out: torch.Tensor | None = None) -> torch.Tensor:
    """The plan's rows of a cache, [B * Hk, L, D], in memory of their own or in `out`, [B * Hk * L, D]."""
    size = cache.shape[-1]
    return torch.index_select(cache.view(-1, size), 0, plan.slots, out=out).view(-1, plan.num_keys, size)


def _gathered_in_block(cache: torch.Tensor, plan: Plan) -> torch.Tensor:
    """As `_gathered`, valid until the next call.

    All layers use one block of memory, for their keys and then for their values: it stays in the core's own cache. The
    allocator would give blocks here and there once other tensors live as long as a step.
    """
    global _block
    size = cache.shape[-1]
    numel = plan.slots.numel() * size
    if _block.numel() < numel or _block.dtype != cache.dtype:
        _block = torch.empty(numel + numel // 4, dtype=cache.dtype)
    return _gathered(cache, plan, _block[:numel].view(-1, size))


def _attend(
    q: torch.Tensor,
    o: torch.Tensor,
    k_buffer: torch.Tensor,
    v_buffer: torch.Tensor,
    plan: Plan,
    scaling: float,
    logit_cap: float,
) -> None:
    """Masked softmax attention of q [B * N, Hq, D] into o, in place."""
    num_requests, num_rows, num_keys = plan.num_requests, plan.num_rows, plan.num_keys
    num_heads, head_size = q.shape[1:]
    num_kv_heads = k_buffer.shape[1]
    group = num_heads // num_kv_heads
    # [B, Hk, N, G, D]: heads that share keys become rows of one product.
    query = q.view(num_requests, num_rows, num_kv_heads, group, head_size).transpose(1, 2)
    query = query.reshape(num_requests * num_kv_heads, num_rows * group, head_size)
    if num_rows >= _MANY_ROWS and logit_cap == 0:
        keys, values = _gathered(k_buffer, plan), _gathered(v_buffer, plan)
        bias = torch.zeros(num_requests, 1, num_rows, 1, num_keys, dtype=q.dtype)
        bias[..., plan.first_hidden :].masked_fill_(plan.hidden, float("-inf"))
        bias = bias.expand(-1, num_kv_heads, -1, group, -1).reshape(-1, num_rows * group, num_keys)
        out = torch.nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=scaling)
    else:
        scores = torch.bmm(query * scaling, _gathered_in_block(k_buffer, plan).transpose(1, 2))
        if logit_cap > 0:
            scores = scores.div_(logit_cap).tanh_().mul_(logit_cap)
        by_row = scores.view(num_requests, num_kv_heads, num_rows, group, num_keys)
        by_row[..., plan.first_hidden :].masked_fill_(plan.hidden, float("-inf"))
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
        out = torch.bmm(weights, _gathered_in_block(v_buffer, plan))
    out = out.view(num_requests, num_kv_heads, num_rows, group, -1).transpose(1, 2)
    o.view(num_requests, num_rows, num_kv_heads, group, -1).copy_(out)

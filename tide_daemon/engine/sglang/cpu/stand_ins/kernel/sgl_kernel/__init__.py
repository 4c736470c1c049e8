"""What SGLang 0.5.23 imports from `sgl_kernel` on a CPU, in pure PyTorch.

The real package's CPU kernels are in SGLang's source tree only (no wheel, no sdist). Without AMX SGLang calls the few
functions below and nothing else; whatever else it would need is behind `cpu_has_amx_support()`, which asks for
`torch.ops.sgl_kernel.convert_weight_packed` and so stays False here.

`attention` and `plan` hold the two attention operators, `cache_locs` the bookkeeping of KV cache slots, `spec_tree` the
building and greedy verification of draft trees, `hashing` the numbers of seeded sampling. Each docstring names the file
of SGLang that calls it.
"""

import torch
from sgl_kernel.attention import decode_attention_cpu, extend_attention_cpu
from sgl_kernel.cache_locs import (
    assign_draft_cache_locs_contiguous_cpu,
    assign_extend_cache_locs_cpu,
    assign_req_to_token_pool_cpu,
    build_draft_decode_metadata_cpu,
    copy_all_layer_kv_cache_cpu,
    fill_accept_out_cache_loc_cpu,
    fill_bonus_tokens_cpu,
    rotate_input_ids_cpu,
)
from sgl_kernel.hashing import murmur_hash32_cpu
from sgl_kernel.spec_tree import build_tree_kernel_efficient_cpu, verify_tree_greedy_cpu

# IntelAMXAttnBackend takes these two from torch.ops. A plain attribute of the namespace spares the dispatcher, whose
# Python operators cost about 10 microseconds a call, 31 calls a step.
torch.ops.sgl_kernel.decode_attention_cpu = decode_attention_cpu
torch.ops.sgl_kernel.extend_attention_cpu = extend_attention_cpu

_operators = torch.library.Library("sgl_kernel", "DEF")
_operators.define("murmur_hash32_cpu(Tensor seed, Tensor positions, Tensor col_indices) -> Tensor")
_operators.impl("murmur_hash32_cpu", murmur_hash32_cpu, "CPU")

__version__ = "0.0.0+tide.stand.in"

__all__ = [
    "assign_draft_cache_locs_contiguous_cpu",
    "assign_extend_cache_locs_cpu",
    "assign_req_to_token_pool_cpu",
    "build_draft_decode_metadata_cpu",
    "build_tree_kernel_efficient_cpu",
    "copy_all_layer_kv_cache_cpu",
    "decode_attention_cpu",
    "extend_attention_cpu",
    "fill_accept_out_cache_loc_cpu",
    "fill_bonus_tokens_cpu",
    "murmur_hash32_cpu",
    "rotate_input_ids_cpu",
    "verify_tree_greedy_cpu",
]

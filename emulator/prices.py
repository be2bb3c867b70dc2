"""What a recorded kernel or collective takes by the planner's rates. Simulated: nothing here is a measurement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from fusionkit_emulator.trace_record import Call, Kernel, Tensor
from fusionkit_planner.rates import Rates

from fusionkit.ops import load_spec

How = Literal["products", "attention", "bytes", "unknown"]  # the last is priced by bytes too

# Op -> places of the two factors among its inputs.
PRODUCTS = {
    **dict.fromkeys(("matmul", "bmm", "mv", "matmul_with_flatten", "lm_head"), (0, 1)),
    **dict.fromkeys(("addmm", "baddbmm"), (1, 2)),
}
FUSED = {
    "fused_allgather_mm": "all_gather",
    "fused_mm_reduce_scatter": "reduce_scatter",
    "fused_mm_allreduce": "all_reduce",
}
ATTENTION = ("flash_attention_npu", "fused_sdp_flash_attention_gcu")
# They read as much as they write, however large the tensor is that they choose from.
CHOOSING = (
    "embedding", "gather", "gather_nd", "index_select", "index_sample", "take_along_axis", "slice", "strided_slice",
    "split", "split_with_num", "unbind",
)  # fmt: skip
UNKNOWN = (
    "einsum", "fused_blha_layer_op", "argsort", "topk", "kthvalue", "searchsorted", "multinomial", "histogram",
    "cummax", "cummin",
)  # fmt: skip
# Vendors' ops that read and write, and compute little.
VENDORS = (
    "rms_norm_npu", "rms_norm_gcu", "fused_add_rms_norm_op", "fused_rope", "fused_rotary_embedding_gcu",
    "remove_padding", "rebuild_padding_v2",
)  # fmt: skip
GRAD = "_grad"


def of_kernel(kernel: Kernel, rates: Rates) -> tuple[float, How]:
    """Seconds, and by what."""
    name = kernel.name.removesuffix(GRAD)
    if name in PRODUCTS or name in FUSED:
        return sum(rates.product_seconds(*shape) for shape in _products(kernel)), "products"
    if name in ATTENTION:
        return rates.attention_seconds(_attention_flops(kernel)), "attention"
    return moved_bytes(kernel) / rates.memory_bandwidth, "unknown" if name in UNKNOWN else "bytes"


def of_call(call: Call, ranks: Sequence[int], rates: Rates) -> float:
    """Seconds from the moment at which the last of these ranks has come.

    Raises:
        ValueError: the rates do not say how so many are joined.
    """
    first, last = min(ranks), max(ranks)
    if first == last:
        return 0.0
    if call.is_pair or call.op in ("broadcast", "reduce"):
        return rates.send_seconds(call.bytes, last - first)
    stride = sorted(ranks)[1] - first
    if call.op == "all_reduce":
        return rates.all_reduce_seconds(call.size, call.bytes, stride)
    whole = call.bytes * (1 if call.op == "all_to_all" else call.size)
    return rates.gather_seconds(call.size, whole, stride)


def call_inside(call: Call, kernel: Kernel) -> Call:
    """The collective of a vendor's op that multiplies too; of no bytes where the op is another."""
    op = FUSED.get(kernel.name)
    if op is None:
        return replace(call, op="all_gather")
    if op == "all_gather":
        return replace(call, op=op, bytes=kernel.inputs[0].bytes)
    (rows, _, columns), *_ = _products(kernel)
    whole = rows * columns * kernel.inputs[0].element
    return replace(call, op=op, bytes=whole // (call.size if op == "reduce_scatter" else 1))


def moved_bytes(kernel: Kernel) -> int:
    """Read and written: each tensor once."""
    written = sum(tensor.bytes for tensor in kernel.outputs)
    if kernel.name in CHOOSING:
        return 2 * written
    if kernel.name.removesuffix(GRAD) in CHOOSING:  # a tensor of the result's shape gives the shape alone
        shapes = {tensor.shape for tensor in kernel.outputs}
        return written + sum(tensor.bytes for tensor in kernel.inputs if tensor.shape not in shapes)
    return written + sum(tensor.bytes for tensor in kernel.inputs)


def _products(kernel: Kernel) -> list[tuple[int, int, int]]:
    """(rows, in_features, out_features) of each; a gradient has one for each of its results."""
    name = kernel.name.removesuffix(GRAD)
    if name in FUSED:
        x, weight = kernel.inputs[:2]
        rows = (kernel.outputs[0] if name == "fused_allgather_mm" else x).numel
        columns = weight.shape[-1] if name == "fused_allgather_mm" else x.shape[-1]
        return [(rows // columns, x.shape[-1], weight.shape[-1])]
    x, y = (kernel.inputs[place] for place in PRODUCTS[name])
    if kernel.name == name:
        return [_sizes(x, y, kernel.outputs[0])]
    rows, inner, columns = _sizes(x, y, kernel.inputs[-1])
    of_input, of_weight = (rows, columns, inner), (inner, rows, columns)
    return [of_weight if tensor.shape == y.shape != x.shape else of_input for tensor in kernel.outputs]


def _sizes(x: Tensor, y: Tensor, result: Tensor) -> tuple[int, int, int]:
    """Of x [.., M, K] and y [.., K, N], each perhaps transposed: M of all the result's batches, K, N."""
    if 0 in (x.numel, y.numel, result.numel):
        return 0, 0, 0
    batches = [math.prod(tensor.shape[:-2]) for tensor in (x, y, result)]
    inner = math.isqrt(x.numel * y.numel * batches[2] // (result.numel * batches[0] * batches[1]))
    columns = max(1, y.numel // (batches[1] * inner))
    return result.numel // columns, inner, columns


def _attention_flops(kernel: Kernel) -> float:
    """By the op's spec. Of [batch, tokens, heads, head_dim]; equally many queries and keys are taken to be causal."""
    q, k = kernel.inputs[:2]
    batch_size, q_len, num_heads, head_dim = q.shape
    dims = {
        "batch_size": batch_size, "q_len": q_len, "kv_len": k.shape[1], "head_dim": head_dim, "num_heads": num_heads,
        "num_key_value_heads": k.shape[2], "causal": q_len == k.shape[1] > 1,
    }  # fmt: skip
    cost = load_spec("flash_attention").cost
    forward = cost(dims, q.element, False).flops
    is_backward = [each.shape for each in kernel.outputs[:2]] == [q.shape, k.shape]
    return cost(dims, q.element, True).flops - forward if is_backward else forward

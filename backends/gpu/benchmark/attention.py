"""Attention beside each backend of scaled_dot_product_attention, and the card's matrix product rate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from fusionkit_backends.gpu import attention_choice
from fusionkit_backends.gpu.autograd import flash_attention as ours
from fusionkit_backends.gpu.benchmark.clock import measure
from fusionkit_backends.gpu.benchmark.contestants import Call, directions, square_product
from fusionkit_backends.gpu.benchmark.rows import Row, rated
from fusionkit_backends.gpu.benchmark.setting import Setting
from torch.nn.attention import SDPBackend, sdpa_kernel

from fusionkit.ops.flash_attention import causal_pairs, cost, hidden_by_rows

PIECE, OURS, OWN, PRODUCT = "attention", "fusionkit", "fusionkit, own kernel", "matrix product"
BACKENDS = {
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
    "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
    "SDPA math": SDPBackend.MATH,
}


@dataclass(frozen=True)
class Shape:
    """One call. documents: the length of each packed document, 0 for a single one."""

    name: str
    length: int
    heads: int
    kv_heads: int
    head_dim: int
    causal: bool = True
    kv_len: int = 0
    mask: str = ""
    documents: int = 0


def shapes(setting: Setting) -> list[Shape]:
    heads, dim, longest = setting.heads, setting.head_dim, setting.lengths[-1]
    plain = [Shape(f"S{length}-causal", length, heads, heads, dim) for length in setting.lengths]
    size, document = setting.lengths[0], max(4, longest // 16)
    found = [
        *plain,
        Shape(f"S{longest}", longest, heads, heads, dim, causal=False),
        Shape(f"S{size}-GQA-causal", size, heads, max(1, heads // 5), dim),
        Shape(f"S{size}-D{dim // 2}-causal", size, 2 * heads, 2 * heads, dim // 2),
        Shape(f"S{size}-D{dim * 2}-causal", size, heads // 2, heads // 2, dim * 2),
        Shape(f"Sq{size}-Skv{2 * size}-causal", size, heads, heads, dim, kv_len=2 * size),
        Shape(f"S{size}-bool-mask", size, heads, heads, dim, causal=False, mask="bool"),
        Shape(f"S{size}-float-mask-causal", size, heads, heads, dim, mask="float"),
        Shape(f"S{longest}-documents-of-{document}", longest, heads, heads, dim, documents=document),
    ]
    return found[2::2] if setting.dry_run else found


def run(setting: Setting) -> Iterator[Row]:
    for shape in shapes(setting):
        yield from of_shape(setting, shape)


def of_shape(setting: Setting, shape: Shape) -> Iterator[Row]:
    made = tensors(setting, shape)
    ceiling, ceiling_flops = square_product(setting)
    batch = made["q"].shape[0]
    pairs = None
    if shape.documents:
        pairs = shape.length // shape.documents * causal_pairs(shape.documents, shape.documents)
    dims = {"batch_size": batch, "q_len": shape.length, "kv_len": made["k"].shape[1], "head_dim": shape.head_dim}
    dims |= {"num_heads": shape.heads, "num_key_value_heads": shape.kv_heads, "causal": shape.causal, "pairs": pairs}
    grads = [torch.randn_like(made["q"])]
    for direction, called in directions(calls(shape, made), grads).items():
        flops = cost(dims, setting.dtype.itemsize, direction != "forward").flops
        outcomes = measure({**called, PRODUCT: ceiling}, setting.num_rounds)
        yield from rated(PIECE, shape.name, direction, outcomes, PRODUCT, flops, ceiling_flops)


def tensors(setting: Setting, shape: Shape) -> dict[str, Any]:
    """Masked calls have one batch row: their dense mask is what fills the memory."""
    kv_len = shape.kv_len or shape.length
    batch = 1 if shape.mask or shape.documents else max(1, setting.tokens // shape.length)
    made = {"q": setting.randn(batch, shape.length, shape.heads, shape.head_dim, grad=True)}
    made |= {name: setting.randn(batch, kv_len, shape.kv_heads, shape.head_dim, grad=True) for name in "kv"}
    if shape.mask:
        mask = torch.rand(1, 1, shape.length, kv_len, device=setting.device)
        mask[..., 0] = 1
        made["attn_mask"] = mask > 0.3 if shape.mask == "bool" else mask.to(setting.dtype)
    if shape.documents:
        ends = torch.arange(shape.length, dtype=torch.int32) // shape.documents * shape.documents + shape.documents
        made["startend_row_indices"] = ends.clamp(max=shape.length)[None, None, :, None].to(setting.device)
    return made


def calls(shape: Shape, made: dict[str, Any]) -> dict[str, tuple[Call, list[Any]]]:
    q, k, v = made["q"], made["k"], made["v"]
    mask, bounds = made.get("attn_mask"), made.get("startend_row_indices")
    wanted = [q, k, v]
    plain = attention_choice.is_plain(q, k, shape.causal, (mask, bounds), None, False) and q.is_cuda

    def own() -> Any:
        return ours.own(q, k, v, shape.causal, mask, bounds)[0]

    chosen = (lambda: ours.frameworks_own(q, k, v, shape.causal)) if plain else own
    found: dict[str, tuple[Call, list[Any]]] = {OURS: (chosen, wanted), OWN: (own, wanted)}
    dense, causal = dense_mask(shape, made), shape.causal and not shape.kv_len and mask is None and bounds is None
    grouped = shape.heads != shape.kv_heads
    heads_first = [x.transpose(1, 2) for x in wanted]
    for name, backend in BACKENDS.items():
        found[name] = (by_backend(backend, heads_first, dense, causal, grouped), wanted)
    return found


def by_backend(backend: Any, heads_first: list[Any], dense: Any, causal: bool, grouped: bool) -> Call:
    def call() -> Any:
        with sdpa_kernel(backend):
            out = F.scaled_dot_product_attention(*heads_first, dense, is_causal=causal, enable_gqa=grouped)
        return out.transpose(1, 2)

    return call


def dense_mask(shape: Shape, made: dict[str, Any]) -> Any:
    """What the framework needs where it has no words for the mask: made beforehand, and not timed."""
    mask, bounds = made.get("attn_mask"), made.get("startend_row_indices")
    q_len, kv_len = made["q"].shape[1], made["k"].shape[1]
    if mask is None and bounds is None and not shape.kv_len:
        return None
    if bounds is not None:
        mask = ~torch.from_numpy(hidden_by_rows(bounds.cpu().numpy(), shape.causal, q_len)).to(bounds.device)
    if not shape.causal:
        return mask
    triangle = torch.ones(q_len, kv_len, dtype=torch.bool, device=made["q"].device).tril(kv_len - q_len)
    if mask is None:
        return triangle
    return mask & triangle if mask.dtype == torch.bool else mask.masked_fill(~triangle, float("-inf"))

"""Llama's decoder layer and a small language model, built of ops that are handed in: ours, plain PyTorch's, Liger's.

    y, h = norm(branch + h);  h' = attention(y);  y, h = norm(h' + h);  branch = down(swiglu(gate(y), up(y)))

Legend: B batch_size, S seq_len, H hidden, N heads, D head_dim. The residual stream h is carried beside the branch, so
that each addition is part of the norm that follows it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Ops:
    """The fused ops of a layer, with fusionkit's signatures."""

    name: str
    rms_norm: Callable[..., Any]
    add_rms_norm: Callable[..., Any]
    rope: Callable[..., Any]
    attention: Callable[..., Any]
    swiglu: Callable[..., Any]
    cross_entropy: Callable[..., Any]


@dataclass(frozen=True)
class Sizes:
    hidden: int
    intermediate: int
    heads: int
    head_dim: int
    vocab: int
    layers: int


class Linear(nn.Module):
    """x @ weight, weight [in_features, out_features] as everywhere in fusionkit."""

    def __init__(self, in_features: int, out_features: int, dtype: Any, device: str) -> None:
        super().__init__()
        made = torch.randn(in_features, out_features, device=device) * in_features**-0.5
        self.weight = nn.Parameter(made.to(dtype))

    def forward(self, x: Any) -> Any:
        return x @ self.weight


class DecoderLayer(nn.Module):
    def __init__(self, sizes: Sizes, ops: Ops, dtype: Any, device: str) -> None:
        super().__init__()
        self.sizes, self.ops = sizes, ops
        width = sizes.heads * sizes.head_dim
        self.q, self.k, self.v = (Linear(sizes.hidden, width, dtype, device) for _ in range(3))
        self.o = Linear(width, sizes.hidden, dtype, device)
        self.gate, self.up = (Linear(sizes.hidden, sizes.intermediate, dtype, device) for _ in range(2))
        self.down = Linear(sizes.intermediate, sizes.hidden, dtype, device)
        ones = torch.ones(2, sizes.hidden, dtype=dtype, device=device)
        self.norm_in, self.norm_mid = (nn.Parameter(each.clone()) for each in ones)

    def forward(self, branch: Any, h_BSH: Any, cos: Any, sin: Any) -> tuple[Any, Any]:
        """branch: the layer's before, or None in the first one. Returns (branch, h)."""
        if branch is None:
            y_BSH = self.ops.rms_norm(h_BSH, self.norm_in)
        else:
            y_BSH, h_BSH = self.ops.add_rms_norm(branch, h_BSH, self.norm_in)
        y_BSH, h_BSH = self.ops.add_rms_norm(self.attend(y_BSH, cos, sin), h_BSH, self.norm_mid)
        return self.down(self.ops.swiglu(self.gate(y_BSH), self.up(y_BSH))), h_BSH

    def attend(self, y_BSH: Any, cos: Any, sin: Any) -> Any:
        B, S, _ = y_BSH.shape
        q_BSND, k_BSND, v_BSND = (
            project(y_BSH).view(B, S, self.sizes.heads, self.sizes.head_dim) for project in (self.q, self.k, self.v)
        )
        q_BSND, k_BSND = self.ops.rope(q_BSND, k_BSND, cos, sin)
        return self.o(self.ops.attention(q_BSND, k_BSND, v_BSND).reshape(B, S, -1))


class Model(nn.Module):
    """Embedding, layers, norm and the loss of the next token, summed."""

    def __init__(self, sizes: Sizes, ops: Ops, dtype: Any, device: str) -> None:
        super().__init__()
        self.ops = ops
        self.embedding = nn.Embedding(sizes.vocab, sizes.hidden, dtype=dtype, device=device)
        self.layers = nn.ModuleList(DecoderLayer(sizes, ops, dtype, device) for _ in range(sizes.layers))
        self.norm = nn.Parameter(torch.ones(sizes.hidden, dtype=dtype, device=device))
        self.head = Linear(sizes.hidden, sizes.vocab, dtype, device)

    def forward(self, tokens_BS: Any, labels_BS: Any, cos: Any, sin: Any) -> Any:
        branch, h_BSH = None, self.embedding(tokens_BS)
        for layer in self.layers:
            branch, h_BSH = layer(branch, h_BSH, cos, sin)
        y_BSH, _ = self.ops.add_rms_norm(branch, h_BSH, self.norm)
        return self.ops.cross_entropy(y_BSH.flatten(0, 1), self.head.weight, labels_BS.flatten())


def rope_tables(length: int, head_dim: int, device: str) -> tuple[Any, Any]:
    """cos, sin [length, head_dim // 2] float32, base 10,000."""
    frequencies = 10000.0 ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    return angles.cos().float().to(device), angles.sin().float().to(device)


def layer_flops(sizes: Sizes, batch: int, length: int, training: bool = True) -> float:
    """Operations of one layer's products and causal attention; recomputation would not count."""
    from fusionkit.ops.flash_attention import cost

    width = sizes.heads * sizes.head_dim
    products = 2.0 * batch * length * sizes.hidden * (4 * width + 3 * sizes.intermediate) * (3 if training else 1)
    dims = {"batch_size": batch, "q_len": length, "kv_len": length, "head_dim": sizes.head_dim, "causal": True}
    dims |= {"num_heads": sizes.heads, "num_key_value_heads": sizes.heads}
    return products + cost(dims, 2, training).flops


def head_flops(sizes: Sizes, tokens: int) -> float:
    """The vocabulary's product and its two gradients."""
    return 6.0 * tokens * sizes.hidden * sizes.vocab

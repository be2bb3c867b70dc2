"""The same Llama in plain PyTorch, for comparison: scaled_dot_product_attention, fused AdamW, q k v in one product.

Shapes in names as in model/llama.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.llama2_13b.bench import phases as shared
from examples.llama2_13b.folders.config import LlamaConfig


class Attention(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.heads = [config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads]
        self.qkv_proj = nn.Linear(config.hidden_size, sum(self.heads) * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * config.head_dim, config.hidden_size, bias=False)

    def forward(self, x_BSH: Tensor, cos_SD: Tensor, sin_SD: Tensor) -> Tensor:
        batch_size, seq_len, _ = x_BSH.shape
        parts = self.qkv_proj(x_BSH).split([heads * self.head_dim for heads in self.heads], dim=-1)
        # [B, heads, S, D]: the layout that scaled_dot_product_attention is faster in
        q, k, v = (x.view(batch_size, seq_len, -1, self.head_dim).transpose(1, 2) for x in parts)
        q, k = (rotate(x, cos_SD, sin_SD) for x in (q, k))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.heads[0] != self.heads[1])
        return self.o_proj(out.transpose(1, 2).reshape(batch_size, seq_len, -1))


class MLP(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_BSH: Tensor) -> Tensor:
        gate_BSI, up_BSI = self.gate_up_proj(x_BSH).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate_BSI) * up_BSI)


class Layer(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x_BSH: Tensor, cos_SD: Tensor, sin_SD: Tensor) -> Tensor:
        x_BSH = x_BSH + self.self_attn(self.input_layernorm(x_BSH), cos_SD, sin_SD)
        return x_BSH + self.mlp(self.post_attention_layernorm(x_BSH))


def rotate(x: Tensor, cos_SD: Tensor, sin_SD: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos_SD + torch.cat((-second, first), dim=-1) * sin_SD


class Llama(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def loss(self, input_ids: Tensor, labels: Tensor, cos_SD: Tensor, sin_SD: Tensor) -> Tensor:
        x_BSH = self.embed_tokens(input_ids)
        for layer in self.layers:
            x_BSH = layer(x_BSH, cos_SD, sin_SD)
        return F.cross_entropy(self.lm_head(self.norm(x_BSH)).float().flatten(0, 1), labels.flatten())


def build(config: LlamaConfig, dtype: torch.dtype) -> Llama:
    """With the benchmark's weights; nothing is drawn first."""
    with torch.device("meta"):
        model = Llama(config)
    model.to_empty(device="cpu")
    for name, parameter in model.named_parameters():
        is_linear = parameter.ndim == 2 and not name.startswith("embed")
        shape = tuple(parameter.shape[::-1] if is_linear else parameter.shape)
        value = torch.from_numpy(shared.weight(name, shape, config.initializer_range))
        parameter.data = (value.T if is_linear else value).to(dtype).contiguous()
    return model


def phases(config: LlamaConfig, seq_len: int, all_bfloat16: bool, compiled: bool = False) -> shared.Phases:
    dtype = torch.bfloat16 if all_bfloat16 else torch.float32
    model = build(config, dtype)
    angles = torch.arange(seq_len)[:, None] / config.rope_theta ** (
        torch.arange(0, config.head_dim, 2) / config.head_dim
    )
    cos_SD, sin_SD = (torch.cat((f(angles), f(angles)), dim=-1).to(torch.bfloat16) for f in (torch.cos, torch.sin))
    input_ids, labels = map(torch.from_numpy, shared.tokens(config, seq_len))
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    norms = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices}, {"params": norms, "weight_decay": 0.0}],
        lr=shared.LEARNING_RATE, betas=(shared.BETA1, shared.BETA2), eps=shared.EPSILON,
        weight_decay=shared.WEIGHT_DECAY, fused=True,
    )  # fmt: skip
    loss: Any = torch.compile(model.loss) if compiled else model.loss

    def forward() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=not all_bfloat16):
            result: Tensor = loss(input_ids, labels, cos_SD, sin_SD)
        return result

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return shared.Phases(forward, lambda value: value.backward(), update)

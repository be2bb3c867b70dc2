"""Fine-tuning of a Llama folder in float64 by PyTorch's own operations: an oracle that shares no line with ours."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

IGNORED = -100


def train(folder, batches, rates, flags):
    """AdamW steps of the mean loss. Returns the losses and the first step's gradients by the folder's names.

    batches: (input_ids, labels, position_ids, ends), one a step; flags: the example's.
    """
    config = json.loads(Path(folder, "config.json").read_text())
    weights = {
        name: x.double().requires_grad_()
        for file in Path(folder).glob("*.safetensors")
        for name, x in load_file(file).items()
    }
    matrices = [x for x in weights.values() if x.ndim > 1]
    others = [x for x in weights.values() if x.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": flags.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(flags.adam_beta1, flags.adam_beta2), eps=flags.adam_epsilon)
    losses, gradients = [], {}
    for batch, rate in zip(batches, rates, strict=True):
        loss = mean_loss(config, weights, *map(torch.from_numpy, batch))
        optimizer.zero_grad()
        loss.backward()
        gradients = gradients or {name: x.grad.numpy().copy() for name, x in weights.items()}
        if flags.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(weights.values(), flags.max_grad_norm)
        for each in optimizer.param_groups:
            each["lr"] = rate
        optimizer.step()
        losses.append(loss.item())
    return losses, gradients


def mean_loss(config, weights, input_ids, labels, position_ids, ends):
    length = input_ids.shape[1]
    row = torch.arange(length)
    # A token sees those before it, and those only whose document has not ended.
    seen = (row[:, None] >= row[None, :]) & (row[:, None] < ends.reshape(-1, 1, 1, length))
    x = weights["model.embed_tokens.weight"][input_ids]
    for index in range(config["num_hidden_layers"]):
        layer = {name.split(".", 3)[3]: w for name, w in weights.items() if name.startswith(f"model.layers.{index}.")}
        x = x + attention(config, layer, norm(config, x, layer["input_layernorm.weight"]), position_ids, seen)
        y = norm(config, x, layer["post_attention_layernorm.weight"])
        gate, up = y @ layer["mlp.gate_proj.weight"].T, y @ layer["mlp.up_proj.weight"].T
        x = x + (gate * torch.sigmoid(gate) * up) @ layer["mlp.down_proj.weight"].T
    logits = norm(config, x, weights["model.norm.weight"]) @ weights["lm_head.weight"].T
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


def norm(config, x, weight):
    return x * (x.square().mean(-1, keepdim=True) + config["rms_norm_eps"]).rsqrt() * weight


def attention(config, layer, x, position_ids, seen):
    heads, key_heads = config["num_attention_heads"], config["num_key_value_heads"]
    q, k, v = (
        (x @ layer[f"self_attn.{name}_proj.weight"].T).unflatten(-1, (count, -1)).transpose(1, 2)
        for name, count in (("q", heads), ("k", key_heads), ("v", key_heads))
    )
    half = q.shape[-1] // 2
    angles = position_ids[:, None, :, None] * config["rope_theta"] ** (-torch.arange(half, dtype=torch.float64) / half)

    def rotated(z):
        a, b = z[..., :half], z[..., half:]
        return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)

    k, v = (z.repeat_interleave(heads // key_heads, 1) for z in (rotated(k), v))
    scores = (rotated(q) @ k.transpose(-1, -2)) / (2 * half) ** 0.5
    mixed = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v
    return mixed.transpose(1, 2).flatten(2) @ layer["self_attn.o_proj.weight"].T


def named_as_the_example(gradients, num_layers):
    """By the example's parameters: [in, out], with q, k, v and gate, up joined along the outputs."""
    joined = {"self_attn.qkv_proj": "self_attn.{}_proj q k v", "mlp.gate_up_proj": "mlp.{}_proj gate up"}
    named = {name.removeprefix("model."): x for name, x in gradients.items()}
    for index in range(num_layers):
        for name, parts in joined.items():
            form, *parts = parts.split()
            pieces = [named.pop(f"layers.{index}.{form.format(part)}.weight") for part in parts]
            named[f"layers.{index}.{name}.weight"] = np.concatenate(pieces)
    return {name: x.T if x.ndim == 2 and "embed" not in name else x for name, x in named.items()}

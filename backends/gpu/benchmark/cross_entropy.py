"""fused_linear_cross_entropy beside the product that it cannot do without, and what it holds for each vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from fusionkit_backends.gpu.benchmark.clock import measure, peak_bytes
from fusionkit_backends.gpu.benchmark.contestants import Call, compiled, directions, product
from fusionkit_backends.gpu.benchmark.memory_bound import kernel, liger_call
from fusionkit_backends.gpu.benchmark.rows import Row, rated
from fusionkit_backends.gpu.benchmark.setting import Setting
from fusionkit_bench.torch_peers import PEERS

PIECE, OP, PRODUCT = "cross_entropy", "fused_linear_cross_entropy", "product alone"


def run(setting: Setting) -> Iterator[Row]:
    for tokens in setting.lengths:
        yield from of_tokens(setting, tokens)


def arguments(setting: Setting, tokens: int, vocab: int) -> dict[str, Any]:
    x, weight = setting.randn(tokens, setting.hidden, grad=True), setting.randn(setting.hidden, vocab) * 0.02
    labels = torch.randint(0, vocab, (tokens,), device=setting.device)
    return {"x": x, "weight": weight.requires_grad_(), "labels": labels, "ignore_index": -100}


def calls(setting: Setting, made: dict[str, Any]) -> dict[str, tuple[Call, list[Any]]]:
    wanted, function = [made["x"], made["weight"]], kernel(OP)
    eager = next(iter(PEERS[OP](**made).values()))[0]
    found = {"fusionkit": lambda: function(**made)[0], "eager": eager, **compiled(setting, eager)}
    if (liger := liger_call(OP, made)) is not None:
        found["Liger-Kernel"] = liger
    return {name: (call, wanted) for name, call in found.items()}


def of_tokens(setting: Setting, tokens: int) -> Iterator[Row]:
    made = arguments(setting, tokens, setting.vocab)
    alone, flops = product(setting, tokens, setting.hidden, setting.vocab)
    grads = [torch.ones((), device=setting.device)]
    for direction, called in directions(calls(setting, made), grads).items():
        products = 1 if direction == "forward" else 3
        outcomes = measure({**called, PRODUCT: alone}, setting.num_rounds)
        yield from rated(PIECE, f"T{tokens}-V{setting.vocab}", direction, outcomes, PRODUCT, products * flops, flops)


def memory(setting: Setting) -> list[dict[str, Any]]:
    """Peak bytes beyond the arguments, of forward + backward, by vocabulary. The gradients are part of it: they are
    shown apart, since the weight's must grow with the vocabulary."""
    found = []
    for vocab in (setting.vocab, 2 * setting.vocab, 4 * setting.vocab):
        made = arguments(setting, setting.lengths[1 % len(setting.lengths)], vocab)
        gradients = sum(made[name].numel() * made[name].element_size() for name in ("x", "weight"))
        called = directions(calls(setting, made), [torch.ones((), device=setting.device)])["forward + backward"]
        for name, call in called.items():
            try:
                peak = max(0, peak_bytes(call) - gradients)
            except RuntimeError as error:
                found.append({"vocab": vocab, "contestant": name, "not_run": str(error)[:160]})
                continue
            found.append({"vocab": vocab, "contestant": name, "peak_bytes_beyond_gradients": peak})
    return found

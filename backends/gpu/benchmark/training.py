"""A decoder layer of Llama 2 13B's widths, and a training step of a few layers: tokens/s and the share of the product
rate (model FLOPs utilisation), beside plain PyTorch and Liger-Kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from fusionkit_backends.gpu.benchmark import layer_ops
from fusionkit_backends.gpu.benchmark.clock import Timing, measure
from fusionkit_backends.gpu.benchmark.contestants import BOTH, Call, square_product, with_gradients
from fusionkit_backends.gpu.benchmark.decoder_layer import (
    DecoderLayer,
    Model,
    Ops,
    Sizes,
    head_flops,
    layer_flops,
    rope_tables,
)
from fusionkit_backends.gpu.benchmark.rows import Row, rated
from fusionkit_backends.gpu.benchmark.setting import Setting

LAYER, STEP, PRODUCT = "layer", "step", "matrix product"
MAKERS = (layer_ops.ours, layer_ops.plain, layer_ops.liger)


def sizes_of(setting: Setting) -> Sizes:
    return Sizes(setting.hidden, setting.intermediate, setting.heads, setting.head_dim, setting.vocab, setting.layers)


def found_ops() -> Iterator[Ops]:
    """Those whose packages are there; a missing Liger-Kernel is said once, in the machine's description."""
    for make in MAKERS:
        try:
            yield make()
        except ImportError:
            if make is layer_ops.ours:
                raise


def layers(setting: Setting) -> Iterator[Row]:
    sizes = sizes_of(setting)
    for length in setting.lengths:
        inputs = [setting.randn(1, length, setting.hidden, grad=True) for _ in range(2)]
        tables = rope_tables(length, setting.head_dim, setting.device)
        grads = [torch.randn_like(each) for each in inputs]
        calls: dict[str, Call] = {}
        for ops in found_ops():
            layer = DecoderLayer(sizes, ops, setting.dtype, setting.device)
            for name, module in flavours(setting, ops, layer).items():
                calls[name] = layer_call(module, layer, inputs, tables, grads)
        flops = layer_flops(sizes, 1, length)
        yield from timed(setting, LAYER, f"S{length}", calls, flops, length)


def layer_call(module: Any, layer: DecoderLayer, inputs: list[Any], tables: Any, grads: list[Any]) -> Call:
    return with_gradients(lambda: module(*inputs, *tables), [*inputs, *layer.parameters()], grads)


def flavours(setting: Setting, ops: Ops, module: Any) -> dict[str, Any]:
    """Plain PyTorch is compiled too; kernels of others are opaque to the compiler."""
    if ops.name == "PyTorch" and setting.with_compile:
        return {"eager": module, "torch.compile": torch.compile(module)}
    return {"eager" if ops.name == "PyTorch" else ops.name: module}


def steps(setting: Setting) -> Iterator[Row]:
    """Forward, backward and fused AdamW, gradients set to none: one contestant's parameters at a time."""
    sizes, length = sizes_of(setting), setting.lengths[len(setting.lengths) // 2]
    flops = sizes.layers * layer_flops(sizes, 1, length) + head_flops(sizes, length)
    tokens, labels = torch.randint(0, sizes.vocab, (2, 1, length), device=setting.device)
    tables = rope_tables(length, setting.head_dim, setting.device)
    for ops in found_ops():
        model = Model(sizes, ops, setting.dtype, setting.device)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
        calls = {
            name: training_step(module, optimizer, tokens, labels, tables)
            for name, module in flavours(setting, ops, model).items()
        }
        yield from timed(setting, STEP, f"{sizes.layers}-layers-S{length}", calls, flops, length)


def training_step(model: Any, optimizer: Any, tokens: Any, labels: Any, tables: Any) -> Call:
    def step() -> None:
        model(tokens, labels, *tables).backward()  # of the sum: AdamW's steps do not depend on the scale
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def timed(setting: Setting, piece: str, name: str, calls: dict[str, Call], flops: float, tokens: int) -> Iterator[Row]:
    ceiling, ceiling_flops = square_product(setting)
    outcomes = measure({**calls, PRODUCT: ceiling}, setting.num_rounds)
    for row in rated(piece, name, BOTH, outcomes, PRODUCT, flops, ceiling_flops):
        rate = f"{tokens / row.outcome.median_us * 1e6:,.0f} tokens/s" if isinstance(row.outcome, Timing) else ""
        yield Row(**{**vars(row), "note": "" if row.contestant == PRODUCT else rate})

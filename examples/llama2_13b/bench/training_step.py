"""The contestants of the training benchmark: each builds a Llama from given weights and times its steps, here."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from examples.llama2_13b.bench.phases import (
    BETA1,
    BETA2,
    EPSILON,
    LEARNING_RATE,
    WEIGHT_DECAY,
    Phases,
    tokens,
    weight,
)
from examples.llama2_13b.folders.adapter_config import AdapterConfig
from examples.llama2_13b.folders.adapter_folder import adapter_rows
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.folders.layout import Table, adapted, layout
from examples.llama2_13b.parallel.mesh import Mesh

ADAPTER, LORA_LEARNING_RATE = AdapterConfig(rank=32, alpha=64), 1e-4


def fusionkit(config: LlamaConfig, seq_len: int) -> Phases:
    """The example's model and optimizer, as `sft` trains them with --bf16."""
    from examples.llama2_13b.model import Llama

    return _trained(*_paddle_model(Llama, config, seq_len, "bfloat16"), LEARNING_RATE)


def lora(config: LlamaConfig, seq_len: int) -> Phases:
    """The same model, frozen, with an adapter on all its matrices, as `lora` trains it with --bf16."""
    from examples.llama2_13b.model.lora import LoraLlama

    model, loss = _paddle_model(LoraLlama, config, seq_len, "bfloat16")
    model.begin_adapter("", ADAPTER, seed=0)
    return _trained(model, loss, LORA_LEARNING_RATE)


def _trained(model: Any, loss: Callable[[], Any], learning_rate: float) -> Phases:
    from examples.llama2_13b.train.optimizer import AdamW

    optimizer = AdamW(model, Mesh(), BETA1, BETA2, EPSILON, WEIGHT_DECAY, max_grad_norm=0.0)
    return Phases(loss, lambda value: value.backward(), lambda: optimizer.step(learning_rate))


def eager(config: LlamaConfig, seq_len: int) -> Phases:
    """The same model on Paddle's own ops in float32, the arithmetic that they have on a CPU, and Paddle's AdamW."""
    import paddle

    import fusionkit as fk
    from examples.llama2_13b.model import Llama

    model, loss = _paddle_model(Llama, config, seq_len, "float32")
    matrices = {parameter.name for parameter in model.parameters() if parameter.ndim > 1}
    optimizer = paddle.optimizer.AdamW(
        LEARNING_RATE, BETA1, BETA2, EPSILON, model.parameters(), WEIGHT_DECAY,
        apply_decay_param_fun=matrices.__contains__,
    )  # fmt: skip

    def forward() -> Any:
        with fk.use_backend("eager"):
            return loss()

    def update() -> None:
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)

    return Phases(forward, lambda value: value.backward(), update)


def _paddle_model(kind: Any, config: LlamaConfig, seq_len: int, dtype: str) -> tuple[Any, Callable[[], Any]]:
    import paddle

    with paddle.LazyGuard():
        model = kind(config, dtype)
    for name, parameter in model.named_parameters():
        parameter.set_value(weight(name, tuple(parameter.shape), config.initializer_range))
    input_ids, labels = map(paddle.to_tensor, tokens(config, seq_len))
    return model, lambda: model.loss(input_ids, labels)[0] / seq_len


def torch_autocast(config: LlamaConfig, seq_len: int) -> Phases:
    """PyTorch with float32 parameters under bfloat16 autocast."""
    from examples.llama2_13b.bench import torch_peer

    return torch_peer.phases(config, seq_len, all_bfloat16=False)


def torch_bfloat16(config: LlamaConfig, seq_len: int) -> Phases:
    """PyTorch with parameters, gradients and moments in bfloat16."""
    from examples.llama2_13b.bench import torch_peer

    return torch_peer.phases(config, seq_len, all_bfloat16=True)


def table_of(contestant: str, config: LlamaConfig) -> Table:
    """The parameters that a contestant has."""
    table = layout(config)
    return adapted(table, adapter_rows(table, ADAPTER)) if contestant == "lora" else table


CONTESTANTS = {f.__name__: f for f in (fusionkit, lora, eager, torch_autocast, torch_bfloat16)}


def product_rate(config: LlamaConfig, seq_len: int, seconds: float = 2.0) -> float:
    """FLOP/s of x @ weight in bfloat16 with the weight packed beforehand: the median over some seconds."""
    import paddle

    import fusionkit as fk

    shape = (config.hidden_size, config.intermediate_size)
    packed = fk.pack_weight(weight("product", shape, 0.02), dtype="bfloat16")
    x = paddle.ones([seq_len, config.hidden_size], "float32").cast("bfloat16")
    times: list[float] = []
    with paddle.no_grad():
        fk.fused_linear(x, packed)
        while sum(times) < seconds:
            started = time.perf_counter()
            fk.fused_linear(x, packed)
            times.append(time.perf_counter() - started)
    return float(2.0 * seq_len * shape[0] * shape[1] / np.median(times))


def run(
    contestant: str, config: LlamaConfig, seq_len: int, warmup: int, steps: int, keeps_memory: bool
) -> dict[str, Any]:
    """Steps after the warm-up, the loss of the very first, and the peak of resident memory in bytes."""
    if keeps_memory:
        from fusionkit import keep_freed_memory

        keep_freed_memory()
    phases = CONTESTANTS[contestant](config, seq_len)
    done = [phases.step() for _ in range(warmup + steps)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"losses": [step.loss for step in done], "steps": [asdict(step) for step in done[warmup:]], "peak_rss": peak}

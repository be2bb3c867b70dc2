"""One contestant of the training benchmark: builds a Llama from given weights and times its steps, in this process."""

from __future__ import annotations

import resource
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from examples.llama2_13b.model.adapter_config import AdapterConfig
from examples.llama2_13b.model.adapter_folder import adapter_rows
from examples.llama2_13b.model.config import LlamaConfig
from examples.llama2_13b.model.layout import Table, adapted, layout
from examples.llama2_13b.parallel.mesh import Mesh

BETA1, BETA2, EPSILON, WEIGHT_DECAY = 0.9, 0.95, 1e-8, 0.1
LEARNING_RATE = 1e-5
ADAPTER, LORA_LEARNING_RATE = AdapterConfig(rank=32, alpha=64), 1e-4


@dataclass(frozen=True)
class Step:
    """One step: its loss before the update, and where its seconds went."""

    loss: float
    forward: float
    backward: float
    optimizer: float

    @property
    def seconds(self) -> float:
        return self.forward + self.backward + self.optimizer


@dataclass(frozen=True)
class Phases:
    """A model and its optimizer as three calls; the loss is read after the backward pass, where devices have ended."""

    forward: Callable[[], Any]
    backward: Callable[[Any], None]
    update: Callable[[], object]

    def step(self) -> Step:
        started = time.perf_counter()
        loss = self.forward()
        after_forward = time.perf_counter()
        self.backward(loss)
        value = loss.item()
        after_backward = time.perf_counter()
        self.update()
        ended = time.perf_counter()
        return Step(value, after_forward - started, after_backward - after_forward, ended - after_backward)


def weight(name: str, shape: tuple[int, ...], scale: float) -> np.ndarray[Any, Any]:
    """The parameter's first value, the same in every framework: ones, or uniform with standard deviation `scale`.

    Matrices are [in_features, out_features], the embedding [vocab_size, hidden_size].
    """
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    values = np.random.default_rng(zlib.crc32(name.encode())).random(shape, dtype=np.float32)
    values -= 0.5
    values *= scale * 12**0.5
    return values


def tokens(config: LlamaConfig, seq_len: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(input_ids, labels), [1, seq_len] each."""
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (1, seq_len + 1))
    return ids[:, :-1], ids[:, 1:]


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

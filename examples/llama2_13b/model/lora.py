"""LoRA: a Llama whose weights are frozen, and beside its projections the small matrices that are trained instead.

    y = x @ W + alpha / rank * dropout(x) @ A @ B          A [in_features, rank], B [rank, out_features]

query, key and value stand side by side in one matrix, and so do gate and up. Each has an A and a B of its own, whose
product is added at its columns. Between tensor-parallel ranks A is divided where W's input is, and B where its output
is. What is not divided is the same on all ranks.

Source: Hu et al. 2021, arXiv:2106.09685, section 4.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.autograd import PyLayer

import fusionkit as fk
from examples.llama2_13b.folders import adapter_folder, checkpoint
from examples.llama2_13b.folders.adapter_config import AdapterConfig
from examples.llama2_13b.folders.adapter_folder import FACTORS, adapter_rows, factor_name, module_of, targeted
from examples.llama2_13b.folders.layout import Array, Part, Table, adapted, layout, own, trainable
from examples.llama2_13b.folders.model_folder import config_of
from examples.llama2_13b.folders.quantization import Format
from examples.llama2_13b.folders.safetensors_writer import Files
from examples.llama2_13b.model import packed_base
from examples.llama2_13b.model.llama import Llama
from examples.llama2_13b.parallel.tensor_parallel import ALONE, TensorParallel
from examples.llama2_13b.parallel.writers import Writers


class Factors(nn.Layer):
    """A and B of one target: this rank's part, with the first values [in_features, rank] and [rank, out_features]."""

    def __init__(self, a: Array, b: Array) -> None:
        super().__init__()
        self.lora_A, self.lora_B = self._parameter(a), self._parameter(b)

    def _parameter(self, value: Array) -> Tensor:
        zeros = nn.initializer.Constant(0.0)
        parameter = self.create_parameter(list(value.shape), dtype="float32", default_initializer=zeros)
        parameter.set_value(value)
        return parameter


class Update(nn.Layer):
    """What the adapters of one linear layer add to its output. The parts that are no target get zeros.

    Args:
        parts: of the layer's weight, in the order of its columns.
        factors: of each target among them, by module.
        adapter: scale and dropout.
        shards: how ranks divide the layer: its output's features, or its input's if `parts` have axis 1.
    """

    def __init__(
        self, parts: tuple[Part, ...], factors: dict[str, Factors], adapter: AdapterConfig, shards: TensorParallel
    ) -> None:
        super().__init__()
        self._adapter, self._shards = adapter, shards
        self._is_row = parts[0].axis == 1
        divisor = 1 if self._is_row else shards.size
        self._widths = {module_of(part): part.shape[0] // divisor for part in parts}
        for module, pair in factors.items():
            self.add_sublayer(module, pair)
            divided, same = (pair.lora_A, pair.lora_B) if self._is_row else (pair.lora_B, pair.lora_A)
            shards.mark_divided(divided)
            shards.mark_of_own_tokens(same)

    def forward(self, x: Tensor) -> Tensor:
        """x as the layer gets it, [tokens, in_features] -> of the shape of the layer's output."""
        a = paddle.concat([pair.lora_A for pair in self.children()], axis=-1)
        inner = fk.fused_linear(self._dropped(x), a) * self._adapter.scale
        inner = self._shards.after_rows(inner) if self._is_row else self._shards.before_columns(inner)
        return fk.fused_linear(inner, paddle.concat([self._rows_of(name) for name, _ in self.named_children()]))

    def _rows_of(self, target: str) -> Tensor:
        """B of one target at its columns, zeros elsewhere: in this way all targets are one product."""
        b = getattr(self, target).lora_B
        zeros = {name: paddle.zeros([b.shape[0], width]) for name, width in self._widths.items() if name != target}
        return paddle.concat([zeros.get(name, b) for name in self._widths], axis=-1)

    def _dropped(self, x: Tensor) -> Tensor:
        """Every rank draws for the whole input and takes its part, so ranks that divide a layer drop what one would."""
        probability = self._adapter.dropout
        if not probability or not self.training:
            return x
        drawn = self._shards.part_of(paddle.rand, x.shape, divides_features=self._is_row)
        return x * ((drawn >= probability).cast(x.dtype) / (1 - probability))


class LoraLlama(Llama):
    """A frozen Llama with an adapter. Made by `with_new_adapter` or `with_adapter`; saved as the adapter alone."""

    adapter: AdapterConfig
    base: str  # the folder of the frozen weights

    @classmethod
    def from_pretrained(cls, folder: str | Path, *args: Any, packs: Format | None = None, **how: Any) -> Llama:
        """As of `Llama`. packs: the matrices of the layers are packed so, one after another as they are read."""
        if packs is None:
            return super().from_pretrained(folder, *args, **how)
        model: Llama = packed_base.load(cls, folder, packs, *args, **how)
        return model

    @classmethod
    def with_new_adapter(
        cls,
        base: str | Path,
        adapter: AdapterConfig,
        seed: int,
        **how: Any,
    ) -> LoraLlama:
        """The model in `base`, frozen, with an adapter as `begin_adapter` makes it.

        Args:
            how: the other arguments of `from_pretrained`.
        """
        model = cls.from_pretrained(base, **how)
        model.begin_adapter(base, adapter, seed)
        return model

    @classmethod
    def with_adapter(
        cls,
        base: str | Path,
        folder: str | Path,
        adapter: AdapterConfig | None = None,
        **how: Any,
    ) -> LoraLlama:
        """The adapter in a folder of PEFT, over the model in `base`.

        Args:
            adapter: instead of what the folder says, with another dropout.
            how: the other arguments of `from_pretrained`.

        Raises:
            FileNotFoundError, ValueError: something is missing, of another shape, or not covered; it is named.
        """
        adapter = adapter or AdapterConfig.from_pretrained(folder)
        rows = adapter_rows(layout(config_of(base)), adapter)
        weights = adapter_folder.reader(folder, rows, how.get("shards", ALONE))  # before memory is taken for the model
        model = cls.from_pretrained(base, **how)
        model._attach(str(base), adapter, rows, weights.read)
        model.stored_dtypes = weights.dtypes()
        return model

    def begin_adapter(self, base: str | Path, adapter: AdapterConfig, seed: int) -> None:
        """A begins as PEFT's does, uniform within 1 / sqrt(in_features), and B at zero: nothing is added yet.

        A follows from seed and its name alone, however ranks divide it.
        """
        rows, shards = adapter_rows(self.table, adapter), self.shards

        def first_value(name: str) -> Array:
            (part,) = rows[name].parts
            return rows[name].join([own(_drawn(part, seed), part, shards.rank, shards.size)])

        self._attach(str(base), adapter, rows, first_value)
        self.stored_dtypes = None

    @property
    def saved(self) -> Table:
        """A folder has the adapter alone, which PEFT reads too."""
        return trainable(self.table)

    def new_files(self, folder: Path, dtypes: Mapping[str, str], writers: Writers, max_shard_bytes: int = 0) -> Files:
        """One, however large."""
        return checkpoint.one_file(folder, adapter_folder.UNFINISHED, self.saved, dtypes, writers)

    def finish_folder(self, folder: Path, new: Files, dtypes: Mapping[str, str]) -> None:
        adapter_folder.finish(folder, self.adapter, self.base)

    def _embed(self, input_ids_BS: Tensor) -> Tensor:
        x_TH = super()._embed(input_ids_BS)
        x_TH.stop_gradient = not self.recompute  # what is computed again has no gradient if its input has none
        return x_TH

    def _attach(self, base: str, adapter: AdapterConfig, rows: Table, value_of: Callable[[str], Array]) -> None:
        """Freeze what is there and add the adapter's parameters, with this rank's values by name in `rows`."""
        self.base, self.adapter = base, adapter
        for parameter in self.parameters():
            parameter.stop_gradient = True
        layers = dict(self.named_sublayers())
        for name, row in self.table.items():
            layer = layers.get(name.removesuffix(".weight"))  # other stages have the others
            if layer is not None and (targets := targeted(row, adapter)):
                names = {module_of(part): [factor_name(name, part, factor) for factor in FACTORS] for part in targets}
                factors = {module: Factors(*map(value_of, pair)) for module, pair in names.items()}
                layer.add_sublayer("lora", Update(row.parts, factors, adapter, self.shards))
                layer.forward = partial(_with_update, layer.forward, layer.lora)
        self.table = adapted(self.table, rows)


def _with_update(layer: Callable[[Tensor], Tensor], update: Update, x: Tensor) -> Tensor:
    if x.dtype == paddle.float32:
        return layer(x) + update(x)
    one, other = (x, x) if x.stop_gradient else Fork.apply(x)  # the first layer's has no gradient
    return Sum.apply(layer(one), update(other))


class Sum(PyLayer):
    """x + y in 16 bits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.wants_dx = not x.stop_gradient  # not in the first layer
        return _sum(x, y)

    @staticmethod
    def backward(ctx: Any, dtotal: Tensor) -> tuple[Tensor | None, Tensor]:
        return dtotal if ctx.wants_dx else None, dtotal


class Fork(PyLayer):
    """x for the layer and for its update, in 16 bits: their gradients are added like their outputs.

    Paddle 3.3.1 adds bfloat16 gradients on the CPU with one thread, element after element.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.view(x.shape), x.view(x.shape)  # Paddle takes x itself for a change in place

    @staticmethod
    def backward(ctx: Any, done: Tensor, dother: Tensor) -> Tensor:
        return _sum(done, dother)


def _sum(x: Tensor, y: Tensor) -> Tensor:
    """With one rounding. Paddle 3.3.1's `add` has no bfloat16 on the CPU.

    The fused op is one pass over memory, and its norm is not used. Through float32 the sum took 42 ms of processor time
    where the op takes 8, for 1024 x 5632 on a Xeon with AMX.
    """
    _, total = fk.fusion_add_rms_norm(x, y, paddle.ones([x.shape[-1]]), epsilon=1.0)
    return total


def _drawn(part: Part, seed: int) -> Array:
    """The whole tensor as on disk: A [rank, in_features], B [out_features, rank]."""
    if part.name.endswith("lora_B.weight"):
        return np.zeros(part.shape, np.float32)
    bound = part.shape[1] ** -0.5  # Kaiming's with a = sqrt(5): sqrt(6 / ((1 + 5) in_features))
    random = np.random.default_rng([seed, *part.name.encode()])
    return random.uniform(-bound, bound, part.shape).astype(np.float32)

"""The frozen part of a Llama in 8 or 4 bits: the matrices of its layers as packs, embedding and head in 16 bits.

Source: Dettmers et al. 2023, arXiv:2305.14314, section 3, with codes in equal steps in place of NF4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import paddle
from paddle import Tensor, nn

import fusionkit as fk
from examples.llama2_13b.folders import checkpoint
from examples.llama2_13b.folders.layout import Table, layout
from examples.llama2_13b.folders.model_folder import config_of
from fusionkit.packed_weight import PackedWeight

FLOAT_ENDS = ("embed_tokens.weight", "lm_head.weight")  # the loss is fused with the head, and takes no pack


@dataclass(frozen=True)
class PackFormat:
    """As of `fusionkit.pack_weight`: int8 or int4, and how many weights of a column share a scale; None: all."""

    dtype: str
    group_size: int | None
    symmetric: bool

    def __str__(self) -> str:
        groups = "a scale a column" if self.group_size is None else f"groups of {self.group_size}"
        return f"{self.dtype}, {groups}{'' if self.symmetric else ' with minimums'}"


class PackedLinear(nn.Layer):
    """y = x @ weight + bias in x's dtype, with a frozen weight in 8 or 4 bits. It has no parameter but the bias."""

    def __init__(self, packed: PackedWeight, bias: Tensor | None) -> None:
        super().__init__()
        self.packed, self.bias = packed, bias

    def forward(self, x: Tensor) -> Tensor:
        return fk.fused_linear(x, self.packed, self.bias)


def why_not(form: PackFormat, dtype: str) -> str | None:
    """Why adapters cannot be trained over such packs on Paddle's device; None if they can. Nothing is loaded."""
    x, weight = fk.TensorSpec((1, 1), dtype), fk.TensorSpec((1, 1), form.dtype, packed_by="cpu")
    asked = fk.fused_linear.explain(x, weight, device=paddle.get_device(), training=True)
    return None if asked.chosen else str(asked.reason)


def load(kind: Any, source: str | Path, form: PackFormat, dtype: str = "float32", **how: Any) -> Any:
    """A model of that kind with the weights of a folder or a GGUF file. One matrix at a time is held in floats.

    Args:
        kind: a Llama's class.
        form: of the layers' matrices.
        dtype, how: as of `Llama.from_pretrained`.

    Raises:
        FileNotFoundError, ValueError: as `Llama.from_pretrained`.
    """
    config = config_of(source)
    weights = checkpoint.Reader(source, layout(config))
    with paddle.LazyGuard():  # no memory for what is replaced
        model = kind(config, dtype, **how)
    fill(model, lambda name: fk.pack_weight(weights.read(name), **vars(form)), weights.read)
    model.stored_dtypes = weights.dtypes()
    return model


def fill(model: Any, pack_of: Callable[[str], PackedWeight], value_of: Callable[[str], Any]) -> None:
    """Give a model without values its packs, and what it has in floats, by the parameters' names."""
    for name in list(_matrices_of_layers(model)):
        _replace(model, name, pack_of(name))
    for name, parameter in list(model.named_parameters()):
        if name in FLOAT_ENDS:
            _set_end(model, name, value_of(name))
        else:
            parameter.set_value(value_of(name))
    model.table = _with_sizes(model)


def _matrices_of_layers(model: Any) -> Iterator[str]:
    """Of this stage."""
    here = dict(model.named_parameters())
    for name, row in model.table.items():
        if name in here and row.is_linear and name not in FLOAT_ENDS:
            yield name


def _replace(model: Any, name: str, packed: PackedWeight) -> None:
    outer, _, own = name.removesuffix(".weight").rpartition(".")
    layer = dict(model.named_sublayers())[outer]
    setattr(layer, own, PackedLinear(packed, getattr(layer, own).bias))


def _set_end(model: Any, name: str, value: Any) -> None:
    """Embedding or head in the dtype of the activations, which both would round it to."""
    layer, dtype = getattr(model, name.removesuffix(".weight")), model.activation_dtype
    layer.weight = layer.create_parameter(list(value.shape), dtype=dtype)
    layer.weight.set_value(paddle.to_tensor(value).cast(dtype))


def _with_sizes(model: Any) -> Table:
    """The table, with the bytes that a parameter has here where they are not those of float32."""
    packs = {f"{name}.weight": one.packed for name, one in model.named_sublayers() if isinstance(one, PackedLinear)}
    held = {name: packed.num_bytes for name, packed in packs.items()}
    for name, parameter in model.named_parameters():
        if name in FLOAT_ENDS:
            held[name] = parameter.size * parameter.element_size()
    return {name: replace(row, held_bytes=held.get(name)) for name, row in model.table.items()}

"""The frozen part of a Llama in 8 or 4 bits: the matrices of its layers as packs, embedding and head in 16 bits.

Source: Dettmers et al. 2023, arXiv:2305.14314, section 3, with codes in equal steps in place of NF4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import paddle
from paddle import Tensor, nn

import fusionkit as fk
from examples.llama2_13b.folders.layout import Table, layout
from examples.llama2_13b.folders.model_folder import config_of
from examples.llama2_13b.folders.quantization import Format, Quantization
from examples.llama2_13b.folders.quantized_reader import QuantizedReader
from fusionkit.packed_weight import PackedWeight
from fusionkit.quantized_weight import QuantizedWeight

FLOAT_ENDS = ("embed_tokens.weight", "lm_head.weight")  # the loss is fused with the head, and takes no pack


class PackedLinear(nn.Layer):
    """y = x @ weight + bias in x's dtype, with a frozen weight in 8 or 4 bits. It has no parameter but the bias.

    Args:
        packs: the weight's columns from left to right. A GGUF file may have v in more bits than q and k.
    """

    def __init__(self, packs: Sequence[PackedWeight], bias: Tensor | None) -> None:
        super().__init__()
        self.packs, self.bias = packs, bias

    @property
    def num_bytes(self) -> int:
        return sum(packed.num_bytes for packed in self.packs)

    def forward(self, x: Tensor) -> Tensor:
        if len(self.packs) == 1:
            return fk.fused_linear(x, self.packs[0], self.bias)
        widths = [packed.out_features for packed in self.packs]
        biases = [None] * len(widths) if self.bias is None else paddle.split(self.bias, widths)
        return paddle.concat([fk.fused_linear(x, *each) for each in zip(self.packs, biases, strict=True)], axis=-1)


def why_not(form: Format, dtype: str) -> str | None:
    """Why adapters cannot be trained over such packs on Paddle's device; None if they can. Nothing is loaded."""
    x, weight = fk.TensorSpec((1, 1), dtype), fk.TensorSpec((1, 1), form.dtype, packed_by="cpu")
    asked = fk.fused_linear.explain(x, weight, device=paddle.get_device(), training=True)
    return None if asked.chosen else str(asked.reason)


def load(kind: Any, source: str | Path, form: Format, dtype: str = "float32", **how: Any) -> Any:
    """A model of that kind with the weights of a folder or a GGUF file. One matrix at a time is held in floats.

    Args:
        kind: a Llama's class.
        form: what the layers' matrices are rounded to, unless they are stored as codes: these stay as they are.
        dtype, how: as of `Llama.from_pretrained`.

    Raises:
        FileNotFoundError, ValueError: as `Llama.from_pretrained`.
    """
    config = config_of(source)
    weights = QuantizedReader(source, layout(config), Quantization(form))
    with paddle.LazyGuard():  # no memory for what is replaced
        model = kind(config, dtype, **how)
    fill(model, lambda name: [fk.pack_weight(each) for each in _codes(weights, name)], weights.floats)
    model.stored_dtypes = weights.dtypes()
    return model


def _codes(weights: QuantizedReader, name: str) -> list[QuantizedWeight]:
    found = weights.parameter(name)
    assert isinstance(found, list)  # what has no codes is rounded
    return found


def fill(model: Any, packs_of: Callable[[str], Sequence[PackedWeight]], value_of: Callable[[str], Any]) -> None:
    """Give a model without values its packs, and what it has in floats, by the parameters' names."""
    for name in list(_matrices_of_layers(model)):
        _replace(model, name, packs_of(name))
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


def _replace(model: Any, name: str, packs: Sequence[PackedWeight]) -> None:
    outer, _, own = name.removesuffix(".weight").rpartition(".")
    layer = dict(model.named_sublayers())[outer]
    setattr(layer, own, PackedLinear(packs, getattr(layer, own).bias))


def _set_end(model: Any, name: str, value: Any) -> None:
    """Embedding or head in the dtype of the activations, which both would round it to."""
    layer, dtype = getattr(model, name.removesuffix(".weight")), model.activation_dtype
    layer.weight = layer.create_parameter(list(value.shape), dtype=dtype)
    layer.weight.set_value(paddle.to_tensor(value).cast(dtype))


def _with_sizes(model: Any) -> Table:
    """The table, with the bytes that a parameter has here where they are not those of float32."""
    packed = {name: one for name, one in model.named_sublayers() if isinstance(one, PackedLinear)}
    held = {f"{name}.weight": one.num_bytes for name, one in packed.items()}
    for name, parameter in model.named_parameters():
        if name in FLOAT_ENDS:
            held[name] = parameter.size * parameter.element_size()
    return {name: replace(row, held_bytes=held.get(name)) for name, row in model.table.items()}

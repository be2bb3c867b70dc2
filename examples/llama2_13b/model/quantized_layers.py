"""Layers whose matrices are in 8 or 4 bits. For inference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle import Tensor, nn

from fusionkit.nn import QuantizedLinear
from fusionkit.quantized_weight import QuantizedWeight


class QuantizedColumns(nn.Layer):
    """A linear layer of matrices side by side: one product each, [..., in_features] -> [..., all out_features].

    A GGUF file may have v in more bits than q and k, which the model computes together.

    Args:
        weights: [in_features, out_features] each.
        bias: [all out_features], float32, or None.
    """

    def __init__(self, weights: Sequence[QuantizedWeight], bias: NDArray[np.float32] | None = None) -> None:
        super().__init__()
        ends = np.cumsum([weight.shape[1] for weight in weights])[:-1]
        biases = [None] * len(weights) if bias is None else np.split(bias, ends)
        self.parts = nn.LayerList([QuantizedLinear(*each) for each in zip(weights, biases, strict=True)])

    def forward(self, x: Tensor) -> Tensor:
        products = [part(x) for part in self.parts]
        return products[0] if len(products) == 1 else paddle.concat(products, axis=-1)


class _LookedUp(QuantizedLinear):
    """A matrix whose columns are looked up, from its codes.

    Beside the codes the same in bfloat16 would take twice their memory, and a tied head has them anyway.
    """

    def look_up(self, ids: Tensor) -> Tensor:
        """[tokens] of ids -> [tokens, in_features] float32."""
        held = self.weight
        values = self._codes(ids) * self._of_groups(held.scales, ids)
        if held.minimums is not None:
            values = values + self._of_groups(held.minimums, ids)
        return values.t()

    def _codes(self, ids: Tensor) -> Tensor:
        """[in_features, tokens], float32."""
        held = self.weight
        codes = paddle.gather(held.codes, ids, axis=1).cast("int32")
        if held.dtype == "int4":  # two rows in one: the even one in the low half
            codes = paddle.stack([codes % 16, codes // 16], axis=1).reshape([2 * codes.shape[0], -1])
            codes = codes[: held.in_features]
        if held.minimums is None:  # two's complement
            half = 8 if held.dtype == "int4" else 128
            codes = (codes + half) % (2 * half) - half
        return codes.cast("float32")

    def _of_groups(self, values: Tensor, ids: Tensor) -> Tensor:
        """Each code's own, from [groups, out_features]."""
        found = paddle.gather(values, ids, axis=1)
        return paddle.repeat_interleave(found, self.group_size or self.in_features, axis=0)[: self.in_features]


class QuantizedEmbedding(_LookedUp):
    """[tokens] of ids -> [tokens, hidden_size] float32, of a matrix [hidden_size, vocab_size]."""

    def forward(self, ids: Tensor) -> Tensor:
        return self.look_up(ids)


class QuantizedHead(_LookedUp):
    """`fusionkit.nn.LanguageModelHead` for inference, of a matrix [hidden_size, vocab_size]."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., vocab_size] float32."""
        return super().forward(x).cast("float32")

    def embed(self, ids: Tensor, dtype: str) -> Tensor:
        """The embedding tied to this head: [tokens] of ids -> [tokens, hidden_size] in dtype."""
        return self.look_up(ids).cast(dtype)

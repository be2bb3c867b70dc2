"""Tensor parallelism: the ranks of a group divide the heads, the MLP's columns and, between the products, the tokens.

Each rank holds its own columns of qkv_proj and gate_up_proj, its own rows of o_proj and down_proj, and its own part of
the vocabulary in embedding and head. A bias of qkv_proj is divided as its columns are; norms and a bias of o_proj are
whole on every rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import paddle
from paddle import Tensor, nn
from paddle.distributed.fleet.utils.sequence_parallel_utils import mark_as_sequence_parallel_parameter

from examples.llama2_13b.parallel.ranks import Ranks
from fusionkit.nn import LanguageModelHead, Linear, RMSNorm
from fusionkit.parallel import collectives, layers
from fusionkit.parallel.parts import part_sizes


@dataclass(frozen=True)
class TensorParallel(Ranks):
    """How a model is divided; by default it is not.

    Args:
        group: of the ranks that divide it; None is one that has all.
        sequence_parallel: between the products each rank has its own part of the tokens, so norms and residual stream
            take a share of the memory and the time; else all ranks compute them alike.
    """

    sequence_parallel: bool = True

    @property
    def divides_tokens(self) -> bool:
        return self.size > 1 and self.sequence_parallel

    def shares(self, **counts: int) -> list[int]:
        """One rank's part of each of what the configuration counts, all of which it divides.

        Raises:
            ValueError: one does not divide. The degree that is named divides them all, and the processes.
        """
        nearest = math.gcd(self.size, *counts.values())
        for name, count in counts.items():
            if count % self.size:
                raise ValueError(
                    f"Llama: {name} must be a multiple of the {self.size} tensor-parallel ranks, got {count}. "
                    f"The nearest degree is {nearest}"
                )
        return [count // self.size for count in counts.values()]

    def column(self, in_features: int, out_features: int, initializer_range: float, bias: bool = False) -> nn.Layer:
        """A linear layer of this rank's columns: [tokens, in_features] -> [all tokens, out_features / size]."""
        if self.size == 1:
            return Linear(in_features, out_features, bias, initializer_range)
        kind = layers.ColumnSequenceParallelLinear if self.sequence_parallel else layers.ColumnParallelLinear
        return self._layer(partial(kind, gather_output=False), in_features, out_features, initializer_range, bias)

    def row(self, in_features: int, out_features: int, initializer_range: float, bias: bool = False) -> nn.Layer:
        """A linear layer of this rank's rows: [all tokens, in_features / size] -> [tokens, out_features].

        A bias is whole on every rank, and added after the sum.
        """
        if self.size == 1:
            return Linear(in_features, out_features, bias, initializer_range)
        kind = layers.RowSequenceParallelLinear if self.sequence_parallel else layers.RowParallelLinear
        return self._layer(partial(kind, input_is_parallel=True), in_features, out_features, initializer_range, bias)

    def _layer(self, kind: Any, in_features: int, out_features: int, initializer_range: float, bias: bool) -> nn.Layer:
        normal = paddle.ParamAttr(initializer=nn.initializer.Normal(std=initializer_range))
        layer: nn.Layer = kind(in_features, out_features, normal, has_bias=bias, mp_group=self.group)
        return layer

    def norm(self, hidden_size: int, epsilon: float) -> RMSNorm:
        """A norm of this rank's tokens."""
        norm = RMSNorm(hidden_size, epsilon)
        self.mark_of_own_tokens(norm.weight)
        return norm

    def embedding(self, vocab_size: int, hidden_size: int, initializer_range: float, dtype: str) -> nn.Layer:
        """Rows of this rank's entries: ids of all tokens -> [tokens, hidden_size] in dtype."""
        normal = paddle.ParamAttr(initializer=nn.initializer.Normal(std=initializer_range))
        if self.size == 1:
            return nn.Embedding(vocab_size, hidden_size, weight_attr=normal)
        embedding = layers.VocabParallelEmbedding(
            vocab_size,
            hidden_size,
            normal,
            self.group,
            reduce_scatter_embeddings=self.sequence_parallel,
            output_dtype=dtype,
        )
        self._mark_largest_part(embedding.weight, vocab_size, hidden_size)
        return embedding

    def head(self, hidden_size: int, vocab_size: int, initializer_range: float) -> LanguageModelHead:
        """Columns of this rank's entries, for all tokens: [tokens, hidden_size] -> logits or loss of all entries."""
        group = self.group if self.size > 1 else None
        head = LanguageModelHead(hidden_size, vocab_size, initializer_range, group, self.divides_tokens)
        self._mark_largest_part(head.weight, vocab_size, hidden_size)
        return head

    def _mark_largest_part(self, weight: Tensor, vocab_size: int, hidden_size: int) -> None:
        """Ranks may have different parts of a vocabulary. What all must choose alike follows from the largest."""
        weight.largest_part = part_sizes(vocab_size, self.size)[0] * hidden_size

    def before_columns(self, x_TR: Tensor) -> Tensor:
        """Of this rank's tokens -> of all; each rank goes on with columns of its own, so gradients are summed."""
        if self.size == 1:
            return x_TR
        return (collectives.all_gather if self.sequence_parallel else collectives.identity)(x_TR, self.group)

    def after_rows(self, x_TR: Tensor) -> Tensor:
        """Products with this rank's rows, of all tokens -> their sum over the ranks, of this rank's tokens."""
        if self.size == 1:
            return x_TR
        return (collectives.reduce_scatter if self.sequence_parallel else collectives.all_reduce)(x_TR, self.group)

    def part_of(self, draw: Callable[[list[int]], Tensor], shape: list[int], divides_features: bool) -> Tensor:
        """This rank's part, [tokens, features], of what is drawn alike on all ranks for all of them."""
        if self.size == 1 or not (divides_features or self.divides_tokens):
            return draw(shape)
        axis = 1 if divides_features else 0
        whole = [n * self.size if each == axis else n for each, n in enumerate(shape)]
        return paddle.split(draw(whole), self.size, axis)[self.rank]

    def mark_divided(self, parameter: Tensor) -> None:
        """Each rank has a part of it."""
        parameter.is_distributed = self.size > 1

    def mark_of_own_tokens(self, parameter: Tensor) -> None:
        """All ranks have it. With divided tokens its gradient is a part, which `Gradients.reduce` completes."""
        if self.divides_tokens:
            mark_as_sequence_parallel_parameter(parameter)


def largest_part(parameter: Tensor) -> int:
    """Elements on the rank that has most of it."""
    return int(getattr(parameter, "largest_part", parameter.size))


def is_shard(parameter: Tensor) -> bool:
    return bool(getattr(parameter, "is_distributed", False))


ALONE = TensorParallel()

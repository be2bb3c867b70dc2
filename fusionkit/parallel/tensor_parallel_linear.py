"""Linear layers with their weight divided over ranks."""

from __future__ import annotations

from typing import Any

import paddle
from paddle.distributed import fleet

import fusionkit as fk
from fusionkit import policy
from fusionkit.parallel import collectives
from fusionkit.parallel.bias import product_with_bias, with_bias
from fusionkit.parallel.column_product import column_product
from fusionkit.parallel.features import gather_features, split_features
from fusionkit.parallel.parameters import bind, create_columns, create_rows


class ColumnParallelLinear(fleet.meta_parallel.ColumnParallelLinear):  # type: ignore[misc]
    """y = x @ weight + bias, the columns of weight divided over the ranks.

    Args:
        in_features, out_features: of the whole weight; out_features is a multiple of the group's size.
        weight_attr: paddle.ParamAttr of the weight.
        has_bias: whether a bias is added; None is no.
        gather_output: put the parts of y together on every rank.
        fuse_matmul_bias: add the bias within the product, with FUSIONKIT_MC2=0 or in a group of one rank.
        mp_group: a Paddle group, a `Communicator`, or None for fleet's model-parallel group.
        name: kept, as fleet does.

    Parameters: weight [in_features, out_features / world_size] with split_axis 1, bias [out_features / world_size].

    Raises:
        ValueError: a size does not divide, or there is no group.

    Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        weight_attr: Any = None,
        has_bias: bool | None = None,
        gather_output: bool = True,
        fuse_matmul_bias: bool = False,
        mp_group: Any = None,
        name: str | None = None,
    ) -> None:
        paddle.nn.Layer.__init__(self)  # fleet's own takes no Communicator, and no process without fleet
        bind(self, mp_group, weight_attr, fuse_matmul_bias, name)
        self.gather_output = gather_output
        create_columns(self, in_features, out_features, has_bias)

    def forward(self, x: Any) -> Any:
        """[..., in_features] -> [..., out_features / world_size], or [..., out_features] with gather_output."""
        if not self.is_mp:
            return product_with_bias(self, x)
        group = self.model_parallel_group
        if policy.mc2():
            y = with_bias(column_product(x, self.weight, group), self.bias)
        else:
            y = product_with_bias(self, collectives.identity(x, group))
        return gather_features(y, self.world_size * self.output_size_per_partition, group) if self.gather_output else y


class RowParallelLinear(fleet.meta_parallel.RowParallelLinear):  # type: ignore[misc]
    """y = sum over ranks(x @ weight) + bias, the rows of weight divided over the ranks.

    Args:
        in_features, out_features: of the whole weight; in_features is a multiple of the group's size.
        weight_attr: paddle.ParamAttr of the weight.
        has_bias: whether a bias is added, after the sum.
        input_is_parallel: x is this rank's part; otherwise it is whole on every rank, and is divided first.
        fuse_matmul_bias: add the bias within the product, in a group of one rank; else it is added after the sum.
        mp_group: a Paddle group, a `Communicator`, or None for fleet's model-parallel group.
        name: kept, as fleet does.

    Parameters: weight [in_features / world_size, out_features] with split_axis 0, bias [out_features], replicated.

    Raises:
        ValueError: a size does not divide, or there is no group.

    Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        weight_attr: Any = None,
        has_bias: bool = True,
        input_is_parallel: bool = False,
        fuse_matmul_bias: bool = False,
        mp_group: Any = None,
        name: str | None = None,
    ) -> None:
        paddle.nn.Layer.__init__(self)
        bind(self, mp_group, weight_attr, fuse_matmul_bias, name)
        self.input_is_parallel = input_is_parallel
        create_rows(self, in_features, out_features, has_bias)

    def forward(self, x: Any) -> Any:
        """[..., in_features / world_size], or [..., in_features] without input_is_parallel, -> [..., out_features]."""
        if not self.is_mp:
            return product_with_bias(self, x)
        group = self.model_parallel_group
        if not self.input_is_parallel:
            x = split_features(x, group)
        if policy.mc2():
            return with_bias(fk.matmul_all_reduce(x, self.weight, group=group), self.bias)
        return with_bias(collectives.all_reduce(fk.fused_linear(x, self.weight), group), self.bias)

"""Linear layers with their weight and the sequence divided over ranks."""

from __future__ import annotations

from typing import Any

import paddle
from paddle.distributed import fleet
from paddle.distributed.fleet.utils import sequence_parallel_utils

import fusionkit as fk
from fusionkit import policy
from fusionkit.parallel import collectives
from fusionkit.parallel.bias import product_with_bias, with_bias
from fusionkit.parallel.parameters import bind, create_columns, create_rows, require, share_of


class ColumnSequenceParallelLinear(sequence_parallel_utils.ColumnSequenceParallelLinear):  # type: ignore[misc]
    """y = all_gather(x) @ weight + bias, the tokens of x and the columns of weight divided over the ranks.

    The backward pass is one `matmul_reduce_scatter` for dx, with the product of the weight's gradient beside it.

    Args:
        in_features, out_features: of the whole weight; out_features is a multiple of the group's size.
        weight_attr: paddle.ParamAttr of the weight.
        has_bias: whether a bias is added; None is no.
        gather_output: must be False.
        fuse_matmul_bias: add the bias within the product where the product is not a fused collective.
        mp_group: a Paddle group, a `Communicator`, or None for fleet's model-parallel group.
        name: kept, as fleet does.

    Parameters: as ColumnParallelLinear's.

    fleet's mp_configs.recompute_allgather, or the attribute of that name, gathers x again in the backward pass instead
    of keeping it (not with FUSIONKIT_MC2=0).

    Raises:
        ValueError: a size does not divide, gather_output is True, there is no group, or one of a single rank.

    Source: Korthikanti et al. 2022, arXiv:2205.05198, section 4.2.2.
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
        paddle.nn.Layer.__init__(self)
        bind(self, mp_group, weight_attr, fuse_matmul_bias, name)
        require(self, self.is_mp, "mp_group", "of at least 2 ranks", self.world_size)
        require(self, gather_output is False, "gather_output", "False", gather_output)
        self.gather_output = gather_output
        self.recompute_allgather = _recompute_allgather()
        create_columns(self, in_features, out_features, has_bias)

    def forward(self, x: Any) -> Any:
        """[s / world_size, b, in_features] -> [s, b, out_features / world_size]; b may be missing."""
        group = self.model_parallel_group
        if not policy.mc2():
            return product_with_bias(self, collectives.all_gather(x, group))
        rows = x.reshape([-1, x.shape[-1]])
        y = fk.all_gather_matmul(rows, self.weight, group=group, save_gathered=not self.recompute_allgather)
        return with_bias(y.reshape([x.shape[0] * self.world_size, *x.shape[1:-1], y.shape[-1]]), self.bias)


class RowSequenceParallelLinear(sequence_parallel_utils.RowSequenceParallelLinear):  # type: ignore[misc]
    """y = reduce_scatter(x @ weight) + bias, the rows of weight and the tokens of y divided over the ranks.

    The backward pass is one `all_gather_matmul` of dy, and the weight's gradient from what it gathers.

    Args:
        in_features, out_features: of the whole weight; in_features is a multiple of the group's size.
        weight_attr: paddle.ParamAttr of the weight.
        has_bias: whether a bias is added, to the rank's own tokens. It is marked as sequence-parallel: fleet's
            register_sequence_parallel_allreduce_hooks sums its gradient over the ranks.
        input_is_parallel: must be True.
        fuse_matmul_bias: add the bias within the product, in a group of one rank; else it is added after the sum.
        mp_group: a Paddle group, a `Communicator`, or None for fleet's model-parallel group.
        name: kept, as fleet does.

    Parameters: as RowParallelLinear's.

    Raises:
        ValueError: a size does not divide, input_is_parallel is False, or there is no group.

    Source: Korthikanti et al. 2022, arXiv:2205.05198, section 4.2.2.
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
        require(self, input_is_parallel is True, "input_is_parallel", "True", input_is_parallel)
        self.input_is_parallel = input_is_parallel
        create_rows(self, in_features, out_features, has_bias)
        if self.bias is not None and self.is_mp:
            sequence_parallel_utils.mark_as_sequence_parallel_parameter(self.bias)

    def forward(self, x: Any) -> Any:
        """[s, b, in_features / world_size] -> [s / world_size, b, out_features]; b may be missing."""
        if not self.is_mp:
            return product_with_bias(self, x)
        group = self.model_parallel_group
        tokens = share_of(type(self).__name__, "x's first axis", x.shape[0], self.world_size)
        if not policy.mc2():
            return with_bias(collectives.reduce_scatter(fk.fused_linear(x, self.weight), group), self.bias)
        y = fk.matmul_reduce_scatter(x.reshape([-1, x.shape[-1]]), self.weight, group=group)
        return with_bias(y.reshape([tokens, *x.shape[1:-1], y.shape[-1]]), self.bias)


def _recompute_allgather() -> bool:
    strategy = getattr(fleet.fleet, "_user_defined_strategy", None)
    return strategy is not None and bool(strategy.hybrid_configs["mp_configs"].recompute_allgather)

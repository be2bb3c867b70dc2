"""An embedding with its rows divided over ranks."""

from __future__ import annotations

from typing import Any

import paddle
from paddle.distributed import fleet
from paddle.nn import functional as F

from fusionkit.errors import argument_error
from fusionkit.parallel import collectives
from fusionkit.parallel.parameters import bind, create_weight, part_of, share_of

NAME = "VocabParallelEmbedding"


class VocabParallelEmbedding(fleet.meta_parallel.VocabParallelEmbedding):  # type: ignore[misc]
    """y = weight[x], the rows of weight divided over the ranks.

    A rank looks up its own rows, gives zeros for the others, and the ranks' results are added: all but one are zeros,
    so the sum is exact. The gradient of a rank's rows is whole, with sequence parallelism too.

    Args:
        num_embeddings, embedding_dim: of the whole weight. num_embeddings need not be a multiple of the group's size:
            `parts.own_part` says which rows a rank has.
        weight_attr: paddle.ParamAttr of the weight.
        mp_group: a Paddle group, a `Communicator`, or None for fleet's model-parallel group.
        name: kept, as fleet does.
        reduce_scatter_embeddings: leave each rank its part of the first axis, for sequence parallelism.
        output_dtype: of y; by default the weight's. The rows are rounded before they travel.

    Parameters: weight [own rows, embedding_dim] with split_axis 0.

    Raises:
        ValueError: num_embeddings is below the group's size, or there is no group.

    Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3. The names of the last two follow Megatron-LM.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        weight_attr: Any = None,
        mp_group: Any = None,
        name: str | None = None,
        *,
        reduce_scatter_embeddings: bool = False,
        output_dtype: str | None = None,
    ) -> None:
        paddle.nn.Layer.__init__(self)  # fleet's own takes no Communicator, and no rows that do not divide
        bind(self, mp_group, weight_attr, fuse_matmul_bias=False, name=name)
        self.num_embeddings = self.origin_num_embeddings = num_embeddings
        self.reduce_scatter_embeddings, self.output_dtype = reduce_scatter_embeddings, output_dtype
        rows = part_of(NAME, "num_embeddings", num_embeddings, self.rank, self.world_size)
        self.vocab_start_index = rows.start
        self.weight = create_weight(self, [rows.stop - rows.start, embedding_dim], weight_attr, split_axis=0)

    def forward(self, x: Any) -> Any:
        """[...] of ids -> [..., embedding_dim], or with reduce_scatter_embeddings a part of the first axis.

        Raises:
            ValueError: an id is not in [0, num_embeddings), or the first axis does not divide.
        """
        if not self.is_mp:
            return self._rounded(F.embedding(x, self.weight))
        _check_ids(x, self.num_embeddings)
        if not self.reduce_scatter_embeddings:
            return collectives.all_reduce(self._rounded(self._own_rows(x)), self.model_parallel_group)
        share_of(NAME, "x's first axis", x.shape[0], self.world_size)
        return collectives.reduce_scatter(self._rounded(self._own_rows(x)), self.model_parallel_group)

    def _own_rows(self, x: Any) -> Any:
        rows = x - self.vocab_start_index
        is_here = (rows >= 0) & (rows < self.weight.shape[0])
        found = F.embedding(rows * is_here.astype(rows.dtype), self.weight)
        return paddle.where(is_here.unsqueeze(-1), found, paddle.zeros([1], found.dtype))

    def _rounded(self, y: Any) -> Any:
        return y if self.output_dtype is None else y.astype(self.output_dtype)


def _check_ids(x: Any, num_embeddings: int) -> None:
    """No rank would have it, and all would give zeros."""
    outside = (x < 0) | (x >= num_embeddings)
    if bool(outside.any()):
        raise argument_error(NAME, "x", f"in [0, {num_embeddings})", int(x[outside][0]))

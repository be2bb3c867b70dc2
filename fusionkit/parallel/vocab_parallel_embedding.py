"""An embedding with its rows divided over ranks."""

from __future__ import annotations

from typing import Any

import paddle
from paddle.distributed import fleet
from paddle.nn import functional as F

from fusionkit.parallel.divided_lookup import check_ids, divided_lookup
from fusionkit.parallel.parameters import bind, create_weight, part_of

NAME = "VocabParallelEmbedding"


class VocabParallelEmbedding(fleet.meta_parallel.VocabParallelEmbedding):  # type: ignore[misc]
    """y = weight[x], the rows of weight divided over the ranks.

    A rank looks up its own rows, gives zeros for the others, and the ranks' results are added, which is exact. The
    gradient of a rank's rows is whole, with sequence parallelism too.

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
        self._own = part_of(NAME, "num_embeddings", num_embeddings, self.rank, self.world_size)
        self.vocab_start_index, rows = self._own.start, self._own.stop - self._own.start
        self.weight = create_weight(self, [rows, embedding_dim], weight_attr, split_axis=0)

    def forward(self, x: Any) -> Any:
        """[...] of ids -> [..., embedding_dim], or with reduce_scatter_embeddings a part of the first axis.

        Raises:
            ValueError: an id is not in [0, num_embeddings), or the first axis does not divide.
        """
        dtype = self.output_dtype or self.weight.dtype
        if not self.is_mp:
            return F.embedding(x, self.weight).astype(dtype)
        check_ids(NAME, x, self.num_embeddings)
        group, scatters = self.model_parallel_group, self.reduce_scatter_embeddings
        return divided_lookup(NAME, x, self._own, lambda rows: F.embedding(rows, self.weight), dtype, group, scatters)

"""Tensor- and sequence-parallel layers: linear ones on the products fused with collectives, and an embedding.

They take the place of the layers of the same names in `paddle.distributed.fleet`: same constructors, parameters, marks
and checkpoints, and `isinstance` of them. `FUSIONKIT_MC2=0` computes the plain collective and then the plain product.

                                  x                                 y
    ColumnParallelLinear          replicated                        sharded on its last axis (gather_output: replicated)
    RowParallelLinear             sharded on its last axis          replicated
    ColumnSequenceParallelLinear  sharded on its first axis         sharded on its last axis
    RowSequenceParallelLinear     sharded on its last axis          sharded on its first axis
    VocabParallelEmbedding        replicated                        replicated (reduce_scatter_embeddings: sharded on
                                                                    its first axis)

Parameters have Paddle's default dtype; float32 ones beside 16-bit activations are master weights. A bias is added once.
"""

from fusionkit.parallel.sequence_parallel_linear import ColumnSequenceParallelLinear, RowSequenceParallelLinear
from fusionkit.parallel.tensor_parallel_linear import ColumnParallelLinear, RowParallelLinear
from fusionkit.parallel.vocab_parallel_embedding import VocabParallelEmbedding

__all__ = [
    "ColumnParallelLinear",
    "ColumnSequenceParallelLinear",
    "RowParallelLinear",
    "RowSequenceParallelLinear",
    "VocabParallelEmbedding",
]

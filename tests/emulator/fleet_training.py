"""Four AdamW steps of a small language model by ways of fleet's parallelism: each rank prints its losses as JSON.

python tests/emulator/fleet_training.py WAY...: `one` (no fleet, where it is started), or some of AXES below that take
as many processes as there are, one after the other: loading Paddle takes a process longer than its steps.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle.distributed import fleet
from paddle.distributed.fleet.base import topology
from paddle.distributed.fleet.utils import sequence_parallel_utils

from fusionkit import parallel

VOCAB, HIDDEN, INNER, SEQ_LEN, BATCH, STEPS = 64, 32, 64, 8, 8, 4
# (data, tensor, pipeline, sharding) and the stage of sharding
AXES = {
    "data": ((2, 1, 1, 1), 0),
    "tensor": ((1, 2, 1, 1), 0),
    "sequence": ((1, 2, 1, 1), 0),
    "tensor-fusionkit": ((1, 2, 1, 1), 0),
    "sequence-fusionkit": ((1, 2, 1, 1), 0),
    "data-sequence-fusionkit": ((2, 2, 1, 1), 0),
    "pipeline": ((1, 1, 2, 1), 0),
    "sharding-1": ((1, 1, 1, 2), 1),
    "sharding-2": ((1, 1, 1, 2), 2),
    "sharding-3": ((1, 1, 1, 2), 3),
    "data-tensor-pipeline": ((2, 2, 2, 1), 0),
    "sharding-tensor-pipeline": ((1, 2, 2, 2), 1),
}


def values(number, *shape):
    return (np.random.default_rng(number).standard_normal(shape) * 0.1).astype("float32")


class Plain(paddle.nn.Layer):
    """A weight and a bias as one process has them."""

    def __init__(self, number, inputs, outputs):
        super().__init__()
        self.linear = paddle.nn.Linear(inputs, outputs)
        self.linear.weight.set_value(values(number, inputs, outputs))

    def forward(self, x):
        return self.linear(x)


class Embedding(paddle.nn.Layer):
    def __init__(self):
        super().__init__()
        self.embedding = paddle.nn.Embedding(VOCAB, HIDDEN)
        self.embedding.weight.set_value(values(0, VOCAB, HIDDEN))

    def forward(self, ids):
        return self.embedding(ids)


def loss_of(logits, labels):
    return F.cross_entropy(logits.reshape([-1, VOCAB]), labels.reshape([-1]))


def part(array, axis):
    group = fleet.get_hybrid_communicate_group()
    return np.split(array, group.get_model_parallel_world_size(), axis)[group.get_model_parallel_rank()]


class ParallelEmbedding(paddle.nn.Layer):
    """VocabParallelEmbedding; `scatters` hands each rank its part of the sequence, [seq_len / ranks, batch, hidden]."""

    def __init__(self, scatters=False):
        super().__init__()
        self.embedding = fleet.meta_parallel.VocabParallelEmbedding(VOCAB, HIDDEN)
        self.embedding.weight.set_value(part(values(0, VOCAB, HIDDEN), 0))
        self.scatters = scatters

    def forward(self, ids):
        x = self.embedding(ids)
        return sequence_parallel_utils.ScatterOp.apply(x.transpose([1, 0, 2])) if self.scatters else x


class ParallelMlp(paddle.nn.Layer):
    """Column, then row: fleet's layers, or fusionkit's in their place."""

    def __init__(self, scatters=False, ours=False):
        super().__init__()
        plain, divided = (parallel, parallel) if ours else (fleet.meta_parallel, sequence_parallel_utils)
        column = divided.ColumnSequenceParallelLinear if scatters else plain.ColumnParallelLinear
        row = divided.RowSequenceParallelLinear if scatters else plain.RowParallelLinear
        self.up = column(HIDDEN, INNER, has_bias=True, gather_output=False)
        self.down = row(INNER, HIDDEN, has_bias=True, input_is_parallel=True)
        self.up.weight.set_value(part(values(1, HIDDEN, INNER), 1))
        self.down.weight.set_value(part(values(2, INNER, HIDDEN), 0))

    def forward(self, x):
        return self.down(self.up(x))


class ParallelHead(paddle.nn.Layer):
    def __init__(self, scatters=False):
        super().__init__()
        self.head = fleet.meta_parallel.ColumnParallelLinear(HIDDEN, VOCAB, has_bias=True, gather_output=False)
        self.head.weight.set_value(part(values(3, HIDDEN, VOCAB), 1))
        self.gathers = scatters

    def forward(self, x):
        return self.head(sequence_parallel_utils.GatherOp.apply(x).transpose([1, 0, 2]) if self.gathers else x)


def parallel_loss(logits, labels):
    return fleet.meta_parallel.ParallelCrossEntropy()(logits, labels.unsqueeze(-1)).mean()


def layers(axes):
    if "tensor" in axes or "sequence" in axes:
        scatters = "sequence" in axes
        mlp = ParallelMlp(scatters, ours="fusionkit" in axes)
        return [ParallelEmbedding(scatters), mlp, ParallelHead(scatters)], parallel_loss
    plain = [Embedding(), Plain(1, HIDDEN, INNER), Plain(2, INNER, HIDDEN), Plain(3, HIDDEN, VOCAB)]
    return plain, loss_of


def batch(share=0, shares=1):
    random = np.random.default_rng(9)
    ids, labels = random.integers(0, VOCAB, (2, BATCH, SEQ_LEN))
    return [paddle.to_tensor(np.split(each, shares)[share]) for each in (ids, labels)]


def init(axes):
    (data, tensor, pipeline, sharding), _ = AXES[axes]
    strategy = fleet.DistributedStrategy()
    strategy.hybrid_configs = {
        "dp_degree": data,
        "mp_degree": tensor,
        "pp_degree": pipeline,
        "sharding_degree": sharding,
    }
    shares = data * sharding
    strategy.pipeline_configs = {"accumulate_steps": 2, "micro_batch_size": BATCH // shares // 2}
    topology._HYBRID_PARALLEL_GROUP = None  # or fleet keeps the groups of the run before
    fleet.init(is_collective=True, strategy=strategy)
    group = fleet.get_hybrid_communicate_group()
    return group.get_data_parallel_rank() * sharding + group.get_sharding_parallel_rank(), shares


def trained_in_stages(axes, inputs):
    made, loss = layers(axes)
    stages = fleet.get_hybrid_communicate_group().topology()
    model = fleet.meta_parallel.PipelineLayer(made, topology=stages, loss_fn=loss)
    optimizer = paddle.optimizer.AdamW(1e-2, parameters=model.parameters())
    model, optimizer = fleet.distributed_model(model), fleet.distributed_optimizer(optimizer)
    return [model.train_batch(inputs, optimizer) for _ in range(STEPS)]


def trained(axes, inputs):
    made, loss = layers(axes)
    model = paddle.nn.Sequential(*made)
    if "sequence" in axes:  # a row layer's bias has seen the rank's own tokens only
        sequence_parallel_utils.register_sequence_parallel_allreduce_hooks(model, 1, False)
    optimizer = paddle.optimizer.AdamW(1e-2, parameters=model.parameters())
    stage = AXES[axes][1] if axes != "one" else 0
    if stage > 1:
        level = {2: "os_g", 3: "p_g_os"}[stage]
        model, optimizer, _ = paddle.distributed.sharding.group_sharded_parallel(model, optimizer, level)
    elif axes != "one":
        model, optimizer = fleet.distributed_model(model), fleet.distributed_optimizer(optimizer)
    losses = []
    for _ in range(STEPS):
        value = loss(model(inputs[0]), inputs[1])
        value.backward()
        optimizer.step()
        optimizer.clear_grad()
        losses.append(value)
    return losses


def main(axes):
    share, shares = (0, 1) if axes == "one" else init(axes)
    inputs = batch(share, shares)
    losses = trained_in_stages(axes, inputs) if "pipeline" in axes else trained(axes, inputs)
    found = {"axes": axes, "share": share, "losses": [float(np.mean(loss.numpy())) for loss in losses]}
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    for axes in sys.argv[1:]:
        main(axes)

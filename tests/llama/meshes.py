"""Meshes whose processes are threads, and what their ranks have together."""

from __future__ import annotations

import contextlib
import threading

import numpy as np

from examples.llama2_13b.parallel.mesh import GROUPS, Mesh
from examples.llama2_13b.parallel.pipeline import PipelineParallel
from examples.llama2_13b.parallel.sharding import Sharding
from examples.llama2_13b.parallel.tensor_parallel import TensorParallel, is_shard
from fusionkit.parallel import Communicator, unique_id
from fusionkit.parallel.parity import run_ranks

_one_at_a_time = threading.Lock()


@contextlib.contextmanager
def making_a_model(group=None):
    """One rank after the other makes a model, and none of a group computes meanwhile.

    Paddle builds lazy layers by replacing a function of the whole process, and recomputation counts names anew in the
    whole process: parameters of one model would get the same name, and their gradients would be taken for each other's.
    """
    if group is not None:
        group.barrier()
    with _one_at_a_time:
        yield
    if group is not None:
        group.barrier()


def on_mesh(degrees, work, stage=1, chunks=1):
    """What `work(mesh)` returns on each rank, a thread each; stage: of sharding; chunks: of each stage's layers."""
    identifiers = {}
    for rank in range(degrees.processes):
        for axes in GROUPS.values():
            identifiers.setdefault((axes, *degrees.group(rank, *axes)), unique_id())

    def one(rank, _):
        groups = {}
        for name, axes in GROUPS.items():
            ranks = degrees.group(rank, *axes)
            identifier = identifiers[axes, *ranks]
            alone = len(ranks) == 1
            groups[name] = None if alone else Communicator(identifier, ranks.index(rank), len(ranks), timeout=60)
        tensor, sharding = TensorParallel(groups.pop("tensor")), Sharding(groups.pop("sharding"), stage)
        pipeline = PipelineParallel(groups.pop("pipeline"), chunks)
        return work(Mesh(**groups, tensor=tensor, pipeline=pipeline, sharding=sharding))

    return run_ranks(degrees.processes, one)


def value_at_first(sharding, parameter):
    """A parameter's value: on the first rank that of its owner, None on the others. All of the group call this."""
    owner = getattr(parameter, "kept_by", None)
    if owner is None or owner == sharding.rank == 0:
        return parameter.numpy()
    if owner == sharding.rank:
        sharding.group.send(parameter.numpy(), 0)
    return sharding.group.recv(np.empty(parameter.shape, np.float32), owner) if sharding.rank == 0 else None


def tensors_of(row, shards, parameter, value):
    """A parameter's value, or a moment of it, as on disk: the parts of all tensor ranks. All of them call this."""
    own = np.asarray(value)
    if not is_shard(parameter):
        return dict(zip((part.name for part in row.parts), row.split(own), strict=True))
    shapes = shards.group.all_gather(np.array(own.shape))  # those of a vocabulary may differ
    found = [own if rank == shards.rank else np.empty(shape, own.dtype) for rank, shape in enumerate(shapes)]
    pieces = [row.split(shards.group.broadcast(shard, rank), rank, shards.size) for rank, shard in enumerate(found)]
    return {
        part.name: np.concatenate([piece[place] for piece in pieces], axis=part.axis)
        for place, part in enumerate(row.parts)
    }

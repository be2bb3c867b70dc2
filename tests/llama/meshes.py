"""Meshes whose processes are threads."""

from __future__ import annotations

from examples.llama2_13b.parallel.mesh import GROUPS, Mesh
from examples.llama2_13b.parallel.pipeline import PipelineParallel
from examples.llama2_13b.parallel.sharding import Sharding
from examples.llama2_13b.parallel.tensor_parallel import TensorParallel
from fusionkit.parallel import Communicator, unique_id
from fusionkit.parallel.parity import run_ranks


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

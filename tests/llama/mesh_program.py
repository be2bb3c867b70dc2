"""What each process of a mesh answers, as JSON: mesh_program.py TENSOR SHARDING, under the launcher."""

from __future__ import annotations

import json
import sys

import numpy as np
import paddle

from examples.llama2_13b.parallel.gradients import Gradients
from examples.llama2_13b.parallel.mesh import Mesh


def main(tensor, sharding):
    mesh = Mesh.join("mesh", tensor_parallel_degree=int(tensor), sharding_parallel_degree=int(sharding))
    rank = paddle.distributed.get_rank()
    parameter = paddle.create_parameter([3], "float32")
    if rank != 0:  # a copy without rows has no gradient
        parameter.grad = paddle.full([3], float(rank))
    Gradients(mesh, [parameter]).reduce()
    answer = {
        "rank": rank,
        "copy": [mesh.copy, mesh.copies],
        "share": mesh.share(range(10)),
        "first": mesh.is_first,
        "totals": mesh.totals(rank, 1),
        "any": [mesh.any_process(rank == mesh.processes - 1), mesh.any_process(False)],
        "gradient": None if parameter.grad is None else np.unique(parameter.grad.numpy()).tolist(),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])

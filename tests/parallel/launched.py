"""What each process of `paddle.distributed.launch` does in the tests: one sum over shared memory, one over TCP."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import paddle
import paddle.distributed as dist

from fusionkit.parallel import Communicator


def main(folder: str) -> None:
    dist.init_parallel_env()
    rank, world_size = dist.get_rank(), dist.get_world_size()
    store = paddle.base.core.create_or_get_global_tcp_store()
    sums = []
    for name, host in (("memory", None), ("tcp", str(rank))):
        with Communicator.from_store(store, rank, world_size, name=name, host=host, timeout=30) as communicator:
            sums.append(communicator.all_reduce(np.full(100_000, rank + 1.0))[-1])
    tensor = paddle.full([3], rank + 1.0)
    dist.all_reduce(tensor)  # the store still serves Paddle's own group
    address = os.environ["PADDLE_CURRENT_ENDPOINT"].rpartition(":")[0]
    Path(folder, str(rank)).write_text(f"{sums[0]:g} {sums[1]:g} {float(tensor[0]):g} {address}")


if __name__ == "__main__":
    main(sys.argv[1])

"""Paddle's own collectives between emulated devices, each against NumPy: prints the number of checks as JSON.

python -m paddle.distributed.launch --log_dir output/log tests/emulator/paddle_collectives.py, on three devices.
"""

from __future__ import annotations

import json

import numpy as np
import paddle
import paddle.distributed as dist

DTYPES = ("float32", "float64", "float16", "bfloat16", "int32", "int64", "uint8", "int8", "bool")
REDUCTIONS = {
    dist.ReduceOp.SUM: np.add.reduce,
    dist.ReduceOp.MAX: np.maximum.reduce,
    dist.ReduceOp.MIN: np.minimum.reduce,
    dist.ReduceOp.PROD: np.multiply.reduce,
}
checked = 0


def require(got, wanted, what):
    """Small integers are exact in every dtype, so are their sums and products."""
    global checked
    np.testing.assert_array_equal(got.astype("float64").numpy(), np.asarray(wanted, "float64"), err_msg=what)
    checked += 1


def values(rank, *shape):
    return np.random.default_rng(rank).integers(0, 4, shape).astype("float64")


def tensor(array, dtype):
    return paddle.to_tensor(array.astype("float32")).astype(dtype)


def reductions(rank, ranks):
    for dtype in DTYPES[:-1]:
        for op, reduce in REDUCTIONS.items():
            x = tensor(values(rank, 5, 7), dtype)
            dist.all_reduce(x, op=op)
            require(x, reduce([values(each, 5, 7) for each in ranks]), f"all_reduce {dtype} {op}")
            x = tensor(values(rank, 5, 7), dtype)
            dist.reduce(x, dst=1, op=op)
            if rank == 1:
                require(x, reduce([values(each, 5, 7) for each in ranks]), f"reduce {dtype} {op}")
            out = tensor(np.zeros((2, 7)), dtype)
            dist.reduce_scatter(out, list(tensor(values(rank, 3, 2, 7), dtype)), op=op)
            require(out, reduce([values(each, 3, 2, 7)[rank] for each in ranks]), f"reduce_scatter {dtype} {op}")


def movements(rank, ranks):
    for dtype in DTYPES:

        def mine(each, *shape, dtype=dtype):
            return values(each, *shape) > 1 if dtype == "bool" else values(each, *shape)

        gathered = []
        dist.all_gather(gathered, tensor(mine(rank, 4, 3), dtype))
        require(paddle.stack(gathered), [mine(each, 4, 3) for each in ranks], f"all_gather {dtype}")
        x = tensor(mine(rank, 9), dtype)
        dist.broadcast(x, src=2)
        require(x, mine(2, 9), f"broadcast {dtype}")
        out = []
        dist.alltoall(out, list(tensor(mine(rank, 3, 5), dtype)))
        require(paddle.stack(out), [mine(each, 3, 5)[rank] for each in ranks], f"alltoall {dtype}")
        # Rank i sends i + j + 1 rows to rank j.
        sizes = [rank + each + 1 for each in ranks]
        out = tensor(np.zeros((sum(sizes), 2)), dtype)
        dist.alltoall_single(out, tensor(mine(rank, sum(sizes), 2), dtype), sizes, sizes)
        starts = [sum(each + to + 1 for to in range(rank)) for each in ranks]
        parts = [
            mine(e, sum(e + to + 1 for to in ranks), 2)[s : s + e + rank + 1]
            for e, s in zip(ranks, starts, strict=True)
        ]
        require(out, np.concatenate(parts), f"alltoall_single {dtype}")
        out = tensor(np.zeros(6), dtype)
        dist.scatter(out, [tensor(mine(each, 6), dtype) for each in ranks] if rank == 0 else None, src=0)
        require(out, mine(rank, 6), f"scatter {dtype}")
        out = tensor(np.zeros(8), dtype)
        calls = [
            dist.P2POp(dist.isend, tensor(mine(rank, 8), dtype), (rank + 1) % 3),
            dist.P2POp(dist.irecv, out, (rank - 1) % 3),
        ]
        calls = calls[:: -1 if rank == 1 else 1]  # one after the other on a custom device: not all send first
        for task in dist.batch_isend_irecv(calls):
            task.wait()
        require(out, mine((rank - 1) % 3, 8), f"batch_isend_irecv {dtype}")


def groups(rank):
    """Two that overlap, used in turns; a rank outside of one goes on."""
    for members in ([0, 2], [1, 2]):
        group = dist.new_group(members)
        for _ in range(3):
            if rank in members:
                x = tensor(values(rank, 3), "float32")
                dist.all_reduce(x, group=group)
                require(x, sum(values(each, 3) for each in members), f"group {members}")
    things = []
    dist.all_gather_object(things, {"rank": rank})
    assert things == [{"rank": each} for each in range(3)]
    dist.barrier()


if __name__ == "__main__":
    dist.init_parallel_env()
    own = dist.get_rank()
    reductions(own, range(3))
    movements(own, range(3))
    groups(own)
    print(json.dumps({"device": paddle.get_device(), "checked": checked}), flush=True)

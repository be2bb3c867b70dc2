"""npu's products fused with collectives between two emulated devices, against float64: prints the checks as JSON.

python -m paddle.distributed.launch --log_dir output/log tests/emulator/matmul_collectives.py, on two devices.
"""

from __future__ import annotations

import json

import numpy as np
import paddle
import paddle.distributed as dist
import pytest

from fusionkit.frameworks import custom_device
from tests.emulator.device_tensors import float64

M, K, N = 6, 256, 24
checked = 0


def values(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape) / 8


def tensor(array, dtype):
    return paddle.to_tensor(array.astype("float32")).astype(dtype)


def require(got, wanted, dtype):
    """Two roundings of a sum of two products."""
    global checked
    epsilon = {"float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
    wanted = np.asarray(wanted)
    assert list(got.shape) == list(wanted.shape)
    np.testing.assert_allclose(float64(got), wanted, atol=2 * epsilon * np.abs(wanted).max())
    checked += 1


def refused(op, inputs, attributes, message):
    global checked
    with pytest.raises(ValueError) as refusal:
        custom_device.run(op, inputs, *attributes)
    assert f"{op}: {message}" in str(refusal.value), str(refusal.value)
    checked += 1


def results(rank, hcom, dtype):
    x1s, x2s = (
        [tensor(values([part, each], *shape), dtype) for each in range(2)] for part, shape in ((0, (M, K)), (1, (K, N)))
    )
    x1, x2 = x1s[rank], x2s[rank]
    every_x1, every_x2 = [float64(x) for x in x1s], [float64(x) for x in x2s]
    summed = every_x1[0] @ every_x2[0] + every_x1[1] @ every_x2[1]
    y, gathered = custom_device.run("fused_allgather_mm", (x1, x2, None), hcom, 2, 0, True, 0)
    require(gathered, np.concatenate(every_x1), dtype)
    require(y, np.concatenate(every_x1) @ every_x2[rank], dtype)
    assert custom_device.run("fused_allgather_mm", (x1, x2, None), hcom, 2, 0, False, 0)[1].shape == [1]
    (part,) = custom_device.run("fused_mm_reduce_scatter", (x1, x2, tensor(np.zeros(N), dtype)), hcom, 2, "sum", 0)
    require(part, np.split(summed, 2)[rank], dtype)
    (whole,) = custom_device.run("fused_mm_allreduce", (x1.reshape([2, 3, K]), x2, None), hcom, "sum", 0)
    require(whole, summed.reshape(2, 3, N), dtype)


def limits(hcom, other):
    def pair(m=M, k=K, dtype="float16"):
        return tensor(values(0, m, k), dtype), tensor(values(1, k, N), dtype), None

    gather, scatter, reduce = "fused_allgather_mm", "fused_mm_reduce_scatter", "fused_mm_allreduce"
    for k in (255, 65535):
        refused(gather, pair(2, k), (hcom, 2, 0, True, 0), "K must be in [256, 65535)")
        refused(scatter, pair(2, k), (hcom, 2, "sum", 0), "K must be in [256, 65535)")
    refused(scatter, pair(5), (hcom, 2, "sum", 0), "M must be a multiple of world_size 2, got 5")
    refused(scatter, pair(), (hcom, 2, "max", 0), "reduce_op must be sum, got max")
    refused(gather, pair(), (hcom, 2, 1, True, 0), "gather_index must be 0, got 1")
    refused(reduce, pair(), (hcom, "sum", 1), "comm_turn must be 0, got 1")
    refused(gather, pair(dtype="float32"), (hcom, 2, 0, True, 0), "x1 must be float16 or bfloat16, got float32")
    refused(gather, pair(), (hcom, 4, 0, True, 0), "world_size must be that of the group, 2, got 4")
    refused(gather, pair(), ("nothing", 2, 0, True, 0), "hcom must be the name of a communicator")
    refused(gather, pair(), (other, 2, 0, True, 0), f"hcom must be {hcom}: a model has one communication domain")


def name_of(group, rank):
    """A communicator is made by its first call."""
    dist.all_reduce(paddle.ones([1]), group=group)
    return group.process_group.get_comm_name(rank)


if __name__ == "__main__":
    assert custom_device.missing("npu") is None
    dist.init_parallel_env()
    own = dist.get_rank()
    first, second = (name_of(dist.new_group([0, 1]), own) for _ in range(2))
    for each in ("float16", "bfloat16"):
        results(own, first, each)
    limits(first, second)
    print(json.dumps({"device": paddle.get_device(), "checked": checked}), flush=True)

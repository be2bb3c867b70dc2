"""Sends and receives between emulated devices, and a pipeline's schedule over them: prints the number of checks.

python -m paddle.distributed.launch --log_dir output/log tests/emulator/exchanges.py, on two devices or more.
"""

from __future__ import annotations

import json
import math
import time

import numpy as np
import paddle
import paddle.distributed as dist

from examples.llama2_13b.parallel.mesh import SAVING_SECONDS, Mesh
from examples.llama2_13b.parallel.pipeline import PipelineParallel
from fusionkit.parallel.groups import communicator_of
from fusionkit.parallel.point_to_point import Exchange

SIZES = (8, 131_072)  # the second is larger than what the emulator keeps of a message on its way
MICRO_BATCHES = 3
checked = 0


def require(got, wanted, what):
    global checked
    np.testing.assert_allclose(np.asarray(got), np.asarray(wanted), rtol=1e-6, err_msg=what)
    checked += 1


def a_send_ends_with_its_receipt(group):
    """Of any size, as on hardware: else a wrong order would show with large messages only."""
    x, hosts = paddle.full([1], group.rank, "float32"), communicator_of(group)
    dist.all_reduce(x, group=group)  # the first call waits for all ranks
    work = dist.isend(x, group.ranks[1], group) if group.rank == 0 else None
    if work is not None:
        time.sleep(0.3)
        require(work.is_completed(), False, "before its receipt")
    hosts.barrier()
    if group.rank == 1:
        dist.irecv(x, group.ranks[0], group)
    paddle.device.synchronize()
    if work is not None:
        require(work.is_completed(), True, "after its receipt")


def neighbours(group, size):
    """Both ways round the ring, each way twice."""
    before, after = (group.rank - 1) % group.nranks, (group.rank + 1) % group.nranks
    sends = [(paddle.full([size], 10 * group.rank + n, "float32"), (before, after)[n % 2]) for n in range(4)]
    receives = [(paddle.zeros([size]), (after, before)[n % 2]) for n in range(4)]
    Exchange(sends, receives, group).wait()
    for n, (arrived, peer) in enumerate(receives):
        require(arrived.numpy(), np.full(size, 10 * peer + n), f"message {n} of {size} from rank {peer}")


def ends(group, size):
    pipeline = PipelineParallel(group)
    if pipeline.is_first or pipeline.is_last:
        summed = pipeline.sum_of_ends(paddle.full([size], 1.0 + group.rank))
        require(summed.numpy(), np.full(size, 1.0 + group.nranks), f"sum of the ends, {size}")


def schedule(group, chunks, size):
    """Each place multiplies each element by its weight; the loss is the mean."""
    pipeline = PipelineParallel(group, chunks)
    weights = [2.0 + place for place in range(group.nranks * chunks)]
    own = [paddle.full([size], weight) for weight in weights[group.rank :: group.nranks]]
    for each in own:
        each.stop_gradient = False

    def forward(micro_batch, chunk, received):
        x = paddle.full([size], 1.0 + micro_batch) if received is None else received
        y = x * own[chunk]
        return y.mean() if pipeline.ends_with(chunk) else y

    shapes = [[size]] * MICRO_BATCHES
    total = sum(1 + number for number in range(MICRO_BATCHES)) * math.prod(weights)
    what = f"{chunks} chunks of {size}"
    require(pipeline.train(forward, shapes, "float32", 2.0), total, what)
    require(pipeline.evaluate(forward, shapes, "float32"), total, what)
    for chunk, weight in enumerate(weights[group.rank :: group.nranks]):
        require(
            own[chunk].grad.numpy(), np.full(size, total / 2 / weight / size), f"gradient of chunk {chunk} of {what}"
        )


if __name__ == "__main__":
    mesh = Mesh.join("exchanges", pipeline_parallel_degree=dist.get_world_size())
    stages = mesh.pipeline.group
    require(communicator_of(stages).timeout, SAVING_SECONDS, "what the hosts wait for each other")
    a_send_ends_with_its_receipt(stages)
    for elements in SIZES:
        neighbours(stages, elements)
        ends(stages, elements)
        for number in (1, 2):
            schedule(stages, number, elements)
    print(json.dumps({"device": paddle.get_device(), "checked": checked}), flush=True)

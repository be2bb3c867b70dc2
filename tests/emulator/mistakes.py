"""Two ranks, one of which makes a mistake: python mistakes.py NAME. A rehearsal is to name the line."""

from __future__ import annotations

import sys

import paddle
from paddle import distributed, nn

SUM, MAX = distributed.ReduceOp.SUM, distributed.ReduceOp.MAX


def add_up(shape, dtype="float32", op=SUM):
    distributed.all_reduce(paddle.ones(shape, dtype), op=op)  # line of add_up


def skip(rank):
    """Both calls have one shape: only their lines differ, until one is missing at the end."""
    x = paddle.ones([4096])
    if rank == 0:
        distributed.all_reduce(x)  # left out by rank 1
    distributed.all_reduce(x)  # made by both


def other_shape(rank):
    add_up([4096 + rank])


def other_dtype(rank):
    add_up([4096], ("float32", "bfloat16")[rank])


def other_op(rank):
    add_up([4096], op=(SUM, MAX)[rank])


def layer(rank):
    """Each layer ends with a sum over the ranks, as a row-parallel one does; rank 1 has one layer more."""
    x = paddle.ones([64, 64])
    for each in nn.LayerList([nn.Linear(64, 64) for _ in range(2 + rank)]):
        x = each(x)
        distributed.all_reduce(x)  # sum of a layer
    distributed.all_gather([], x)  # what comes after the layers


def stage(rank):
    """Two stages of a pipeline, of two layers each, but the second has one more. Each has an end: that is no layer."""
    x = paddle.ones([64, 64])
    if rank == 1:
        distributed.recv(x, 0)
    for each in nn.LayerList([nn.Linear(64, 64) for _ in range(2 + rank)]):
        x = each(x)  # a layer of the stage
    if rank == 0:
        distributed.send(x, 1)
    paddle.tanh(x)  # an end of the model


def even(rank):
    """The same without the mistake, and an end that is longer on one stage."""
    x = paddle.ones([64, 64])
    for each in nn.LayerList([nn.Linear(64, 64) for _ in range(4)]):
        x = each(x)
    for _ in range(1 + 2 * rank):
        x = paddle.tanh(x)
    distributed.all_reduce(x)


def deadlock(rank):
    x = paddle.ones([4096])
    distributed.recv(x, 1 - rank)  # both wait for the other
    distributed.send(x, 1 - rank)


def memory(rank):
    kept = [paddle.ones([2**28], "float32")]
    if rank == 1:
        kept.append(paddle.ones([2**29], "float32"))  # 2 GiB too much


if __name__ == "__main__":
    distributed.init_parallel_env()
    globals()[sys.argv[1]](distributed.get_rank())
    paddle.device.synchronize()

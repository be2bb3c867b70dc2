"""Two ranks of two steps each, for the timeline: each multiplies, sums over both ranks, and updates.

Rank 1 multiplies as often as the argument says, rank 0 once.
"""

import sys

import paddle
import paddle.distributed as dist

TIMES = int(sys.argv[1])

dist.init_parallel_env()
paddle.seed(0)
weight = paddle.create_parameter([1024, 1024], "float32")
optimizer = paddle.optimizer.SGD(parameters=[weight])
for _ in range(2):
    x = paddle.ones([4096, 1024])
    for _ in range(TIMES if dist.get_rank() == 1 else 1):
        x = paddle.matmul(x, weight)
    x.sum().backward()
    dist.all_reduce(weight.grad)
    optimizer.step()
    optimizer.clear_grad()

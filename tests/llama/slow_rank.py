"""sft on several processes, of which rank 1 sleeps before every micro-batch: slow_rank.py SECONDS FLAGS..."""

from __future__ import annotations

import sys
import time

import paddle

from examples.llama2_13b import sft
from examples.llama2_13b.io.flags import main
from examples.llama2_13b.train.trainer import Trainer


def slowed(seconds):
    work = Trainer._work

    def slow(self, batches):
        if paddle.distributed.get_rank() == 1:
            time.sleep(seconds)
        return work(self, batches)

    Trainer._work = slow


if __name__ == "__main__":
    slowed(float(sys.argv.pop(1)))
    main(sft.SftFlags, sft.sft, "slow_rank")

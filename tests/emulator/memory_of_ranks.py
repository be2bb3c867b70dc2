"""A training run that prints what each rank holds beside what was predicted: python memory_of_ranks.py FLAGS..."""

from __future__ import annotations

import json

import paddle

from examples.llama2_13b import sft
from examples.llama2_13b.io.flags import main
from examples.llama2_13b.train import run
from examples.llama2_13b.train.optimizer import AdamW


def watch():
    """Have the first step print sizes before its update, and the run its peak at the end."""
    update, ended, seen = AdamW.step, run._ended, {}

    def step(self, learning_rate):
        parameters = list(self._model.parameters())
        if "gradients" not in seen:
            seen["gradients"] = 4 * sum(one.size for one in parameters if one.grad is not None)
        norm = update(self, learning_rate)
        moments = [one for name, one in self._adamw.state_dict().items() if "_moment" in name]
        seen["parameters"] = 4 * sum(one.size for one in parameters)
        seen["optimizer"] = 4 * sum(one.size for one in moments)
        return norm

    def end(trainer, *arguments):
        device = paddle.get_device()
        of_all = run.memory.predict(trainer.model, trainer.mesh, run.step_of(trainer))
        rank = paddle.distributed.get_rank()
        print(json.dumps({"rank": rank, **seen, "peak": trainer.peak_memory, "device": device}))
        print(json.dumps({"predicted": [vars(one) for one in of_all]}))
        return ended(trainer, *arguments)

    AdamW.step, run._ended = step, end


if __name__ == "__main__":
    watch()
    main(sft.SftFlags, sft.sft, "memory_of_ranks")

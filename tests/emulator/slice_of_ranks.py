"""Steps of a Llama without a folder: each rank prints what the device accounts for beside what is predicted, as JSON.

python slice_of_ranks.py '{"sizes": {...}, "degrees": {...}, "runs": [{...}, ...]}': fields of `LlamaConfig`, arguments
of `Mesh.join`, and what is measured one after the other; a run's fields are those of `Choice`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import resource
import sys

import numpy as np
import paddle

import fusionkit as fk
from examples.llama2_13b.data.packing import Batch
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.model import Llama
from examples.llama2_13b.parallel.gradients import Gradients
from examples.llama2_13b.parallel.mesh import Mesh
from examples.llama2_13b.parallel.sharding import Sharding
from examples.llama2_13b.train import memory, metrics
from examples.llama2_13b.train.loss import chunk_of, next_token
from examples.llama2_13b.train.optimizer import AdamW


@dataclasses.dataclass
class Choice:
    """A step: micro-batches of `rows` rows of `tokens` tokens; the backend if it is not the best."""

    rows: int
    tokens: int
    micro_batches: int = 1
    dtype: str = "bfloat16"
    stage: int = 1
    recompute: str | None = None
    backend: str | None = None


def batch(config, rows, tokens):
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (rows, tokens))
    ends = np.full((rows, 1, tokens, 1), tokens, np.int32)
    return Batch(ids, ids, np.tile(np.arange(tokens), (rows, 1)), ends, [tokens] * rows)


class Run:
    """A model with random values and its optimizer on one rank."""

    def __init__(self, config, mesh, choice):
        paddle.seed(0)
        self.mesh, self.choice, self.config = mesh, choice, config
        self.model = Llama(config, choice.dtype, choice.recompute, mesh.tensor, mesh.pipeline, mesh.sharding)
        self.gradients = Gradients(mesh, self.model.parameters()).watch()
        self.optimizer = AdamW(self.model, mesh, 0.9, 0.99, 1e-8, weight_decay=0.1, max_grad_norm=1.0)
        self.step(1, mesh.tensor.size)  # the optimizer's state comes with the first update

    def step(self, rows, tokens):
        """Returns bytes of the gradients that the optimizer reads."""
        count, mesh, model = self.choice.micro_batches, self.mesh, self.model
        batches = [batch(self.config, rows, tokens) for _ in range(count)]
        shapes = [model.handed_on_shape(rows, tokens)] * count
        self.gradients.expect(count, count)
        mesh.pipeline.train(chunk_of(model, next_token, batches), shapes, self.choice.dtype, rows * tokens * count)
        self.gradients.reduce()
        found = 4 * sum(one.size for one in model.parameters() if one.grad is not None)
        self.optimizer.step(1e-3)
        return found

    def measured(self):
        """Bytes of a step."""
        device = paddle.get_device()
        paddle.device.reset_max_memory_allocated(device)
        gradients = self.step(self.choice.rows, self.choice.tokens)
        peak = metrics.peak_memory()
        has = self.mesh.sharding.has
        moments = [one for name, one in self.optimizer._adamw.state_dict().items() if "_moment" in name]
        parameters = 4 * sum(one.size for one in self.model.parameters() if has(one))
        self.model.divide_layers()
        held = paddle.device.memory_allocated(device)
        optimizer = 4 * sum(one.size for one in moments)
        return {
            "parameters": parameters, "gradients": gradients, "optimizer": optimizer, "peak": peak, "held": held,
            "device": device,
        }  # fmt: skip


def main(given):
    case = json.loads(given)
    mesh, config = Mesh.join("slice_of_ranks", **case["degrees"]), LlamaConfig(**case["sizes"])
    for words in case["runs"]:
        choice = Choice(**words)
        sharded = dataclasses.replace(mesh, sharding=Sharding(mesh.sharding.group, choice.stage))
        with fk.use_backend(choice.backend) if choice.backend else contextlib.nullcontext():
            run = Run(config, sharded, choice)
            measured = run.measured()
            step = memory.Step(choice.rows, choice.tokens, choice.micro_batches)
            predicted = memory.predict(run.model, sharded, step)[mesh.rank]
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        found = {"choice": vars(choice), "measured": measured, "host": host, "predicted": vars(predicted)}
        print(json.dumps({"rank": mesh.rank, **found}))
        del run
        gc.collect()


if __name__ == "__main__":
    main(sys.argv[1])

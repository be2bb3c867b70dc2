"""Three steps of the Llama example's fine-tuning, unchanged, where it is started: prints losses and ledger as JSON.

The data lie beside the model's folder. OUTPUT.npz gets what the steps were given and the first step's gradients.

python tests/emulator/sft_losses.py MODEL OUTPUT float32|bfloat16 BACKEND[,BACKEND] ROWS [DEGREE [SHARDING]]: rows of a
process's micro-batch, degree of tensor parallelism, stage of sharding.
Of several processes the first alone knows the losses.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import paddle

import fusionkit as fk
from examples.llama2_13b import sft
from examples.llama2_13b.train import metrics
from examples.llama2_13b.train.optimizer import AdamW


def flags_of(model, output, dtype, rows, degree=1, sharding=""):
    return sft.SftFlags(
        model_name_or_path=model,
        dataset_name_or_path=str(Path(model).with_name("data")),
        output_dir=output,
        src_length=100,
        max_length=128,
        zero_padding=True,
        per_device_train_batch_size=int(rows),
        tensor_parallel_degree=int(degree),
        sharding=sharding,
        max_steps=3,
        learning_rate=1e-3,
        bf16=dtype == "bfloat16",
    )


def record():
    """What the steps are given, and the gradients that the first one leaves: the example's own run, watched."""
    recorded = {}
    loss, step = sft.next_token, AdamW.step

    def watched_loss(model, batch, received):
        for name in ("input_ids", "labels", "position_ids", "startend_row_indices"):
            recorded[f"{len(recorded.get('rates', []))}.{name}"] = getattr(batch, name)
        return loss(model, batch, received)

    def watched_step(self, learning_rate):
        if not any(name.startswith("gradient.") for name in recorded):
            recorded.update(
                {f"gradient.{name}": x.grad.numpy() for name, x in self._parameters.items() if x.grad is not None}
            )
        recorded.setdefault("rates", []).append(learning_rate)
        return step(self, learning_rate)

    sft.next_token, AdamW.step = watched_loss, watched_step
    return recorded


def main(model, output, dtype, backends, rows, degree=1, sharding=""):
    flags = flags_of(model, output, dtype, rows, degree, sharding)
    recorded = record()
    metrics.measure_peak_flops = lambda dtype: 1e11  # half a second of each process
    with fk.use_backend(backends.split(",")):
        code = sft.sft(flags)
    assert code == 0
    first = paddle.distributed.get_rank() == 0
    if first:
        np.savez(f"{output}.npz", **recorded)
    lines = Path(output, "log.jsonl").read_text().splitlines() if first else []
    losses = [json.loads(line)["loss"] for line in lines]
    counts = [[op, backend, reason] for op, backend, reason in fk.ledger()]
    print(json.dumps({"device": paddle.get_device(), "losses": losses, "ledger": counts}))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Three steps of the Llama example's fine-tuning, unchanged, where it is started: prints losses and ledger as JSON.

python tests/emulator/sft_losses.py MODEL OUTPUT float32|bfloat16 BACKEND[,BACKEND] ROWS, of a process's micro-batch.
Of several processes the first alone knows the losses.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import paddle

import fusionkit as fk
from examples.llama2_13b import data_parallel
from examples.llama2_13b.sft import sft
from examples.llama2_13b.sft_flags import SftFlags

DATA = Path(__file__).parents[2] / "examples" / "llama2_13b" / "data"


def main(model, output, dtype, backends, rows):
    flags = SftFlags(
        model_name_or_path=model,
        dataset_name_or_path=str(DATA),
        output_dir=output,
        src_length=100,
        max_length=128,
        zero_padding=True,
        per_device_train_batch_size=int(rows),
        max_steps=3,
        learning_rate=1e-3,
        bf16=dtype == "bfloat16",
    )
    with fk.use_backend(backends.split(",")):
        code = sft(flags)
    assert code == 0
    lines = Path(output, "log.jsonl").read_text().splitlines() if data_parallel.is_first() else []
    losses = [json.loads(line)["loss"] for line in lines]
    counts = [[op, backend, reason] for op, backend, reason in fk.ledger()]
    print(json.dumps({"device": paddle.get_device(), "losses": losses, "ledger": counts}))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Four AdamW steps of PaddleNLP's own Llama, with nothing of fusionkit imported: prints losses and custom ops as JSON.

python tests/paddlenlp/train.py plain|fused float32|bfloat16 GRADIENTS; bfloat16 is O2 with master weights. GRADIENTS is
an npz file for those of the first step.
"""

from __future__ import annotations

import json
import sys
from collections import Counter

import numpy as np
import paddle
from paddle.base import core
from paddlenlp.transformers import LlamaConfig, LlamaForCausalLM

calls = Counter()
run_custom_op = core.eager._run_custom_op


def counted(name, *arguments):
    calls[name] += 1
    return run_custom_op(name, *arguments)


core.eager._run_custom_op = counted


def model(fused):
    made = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=512,
            hidden_size=128,
            intermediate_size=192,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=64,
            use_flash_attention=fused,
            use_fused_rope=fused,
            use_fused_rms_norm=fused,
            use_fast_layer_norm=False,
        )
    )
    for number, (_, parameter) in enumerate(sorted(made.named_parameters())):
        values = np.random.default_rng(number).standard_normal(parameter.shape).astype("float32") * 0.05
        parameter.set_value(paddle.to_tensor(values if values.ndim > 1 else np.ones_like(values)))
    return made


def main(kind, dtype, gradients):
    mixed = dtype == "bfloat16"
    llama = model(kind == "fused")
    optimizer = paddle.optimizer.AdamW(1e-3, parameters=llama.parameters(), multi_precision=mixed)
    if mixed:
        llama, optimizer = paddle.amp.decorate(llama, optimizer, level="O2", dtype=dtype, master_weight=True)
    ids = paddle.to_tensor(np.random.default_rng(7).integers(0, 512, (2, 33)))
    losses = []
    for _ in range(4):
        with paddle.amp.auto_cast(enable=mixed, level="O2", dtype="bfloat16"):
            loss = llama(input_ids=ids[:, :-1], labels=ids[:, 1:])[0]
        loss.backward()
        if not losses:
            named = llama.named_parameters()
            np.savez(gradients, **{name: x.grad.astype("float32").numpy() for name, x in named})
        optimizer.step()
        optimizer.clear_grad()
        losses.append(float(loss))
    print(json.dumps({"device": paddle.get_device(), "losses": losses, "ops": calls}))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""How long `warmup` takes for the kernels of a training step, with an empty and with a full cache, and whether a step
compiles anything after it. Each reading is a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from fusionkit_backends.gpu.benchmark import layer_ops
from fusionkit_backends.gpu.benchmark.contestants import Call
from fusionkit_backends.gpu.benchmark.decoder_layer import Model, rope_tables
from fusionkit_backends.gpu.benchmark.setting import Setting
from fusionkit_backends.gpu.benchmark.training import sizes_of, training_step
from fusionkit_backends.gpu.warmup import compilations, llama_calls, warmup

CHILD = "--cold-start-child"


def run(setting: Setting, script: Path) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "TRITON_CACHE_DIR": cache}
        command = [sys.executable, str(script), CHILD, *(["--dry-run"] if setting.dry_run else [])]
        found = []
        for state in ("empty cache", "full cache"):
            output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
            found.append({"cache": state, **json.loads(output.splitlines()[-1])})
        return found


def child(setting: Setting) -> dict[str, Any]:
    """Seconds of `warmup`, and what Triton compiles in steps of the same and of another length after it."""
    warm = warmup(
        llama_calls(
            hidden_size=setting.hidden,
            intermediate_size=setting.intermediate,
            num_attention_heads=setting.heads,
            head_dim=setting.head_dim,
            vocab_size=setting.vocab,
            dtype=str(setting.dtype).removeprefix("torch."),
        )
    )
    setting = replace(setting, layers=2 - setting.dry_run)
    model = Model(sizes_of(setting), layer_ops.ours(), setting.dtype, setting.device)
    optimizer, elapsed = torch.optim.AdamW(model.parameters(), 1e-4), []
    with compilations() as late:
        for length in (setting.lengths[0], setting.lengths[0], setting.lengths[0] + 5):
            start = time.perf_counter()
            step_of(setting, model, optimizer, length)()
            if not setting.dry_run:
                torch.cuda.synchronize()
            elapsed.append(time.perf_counter() - start)
    return {
        "warmup_s": warm.elapsed_s,
        "programs": warm.num_programs,
        "first_step_s": elapsed[0],
        "second_step_s": elapsed[1],
        "compiled_after_warmup": list(late),
    }


def step_of(setting: Setting, model: Model, optimizer: Any, length: int) -> Call:
    tokens, labels = torch.randint(0, setting.vocab, (2, 1, length), device=setting.device)
    return training_step(model, optimizer, tokens, labels, rope_tables(length, setting.head_dim, setting.device))

"""The memory that a run predicts of each rank, against the emulator's exact accounting of the same run."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import pytest

from examples.llama2_13b.train.memory import COMPOSED_UPDATE
from tests.emulator.emulated import run
from tests.emulator.measured_steps import require_predicted, steps_of
from tests.emulator.test_sft import created
from tests.hanging import HANGING
from tests.launch import LAUNCH

SCRIPT = Path(__file__).with_name("memory_of_ranks.py")
# Small, and large enough that the framework's own blocks of 256 bytes are no part of it.
SLICE = {
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "vocab_size": 2047,
    "hidden_size": 512,
    "intermediate_size": 1280,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
EXACT = ("parameters", "gradients", "optimizer")
# The flags of each layout of two ranks, and how near the peak is predicted.
LAYOUTS = {
    "tensor": {"tensor_parallel_degree": 2, "bf16": True},
    "sharding": {"sharding": "stage1", "gradient_accumulation_steps": 2},
    "pipeline": {"pipeline_parallel_degree": 2, "gradient_accumulation_steps": 4},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return created(tmp_path_factory.mktemp("memory"), SLICE)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_memory_of_each_rank_is_predicted(model, tmp_path, layout):
    """Exactly for parameters, gradients and optimizer state; within 5% for the peak."""
    folders = {"model_name_or_path": model, "dataset_name_or_path": Path(model).with_name("data")}
    sizes = {"src_length": 100, "max_length": 256, "zero_padding": True, "max_steps": 2, "learning_rate": 1e-3}
    flags = {**folders, "output_dir": tmp_path / "out", **sizes, **LAYOUTS[layout]}
    launch = [LAUNCH, "--devices", "0,1", "--log_dir", str(tmp_path / "log"), str(SCRIPT)]
    words = [sys.executable, *launch, *(f"--{name}={value}" for name, value in flags.items())]
    root = str(Path(__file__).parents[2])
    result = run("npu", *words, options=("--devices", "2", "--timeout", "280"), timeout=HANGING, PYTHONPATH=root)
    logs = [path.read_text() for path in sorted((tmp_path / "log").glob("workerlog.*"))]
    assert result.returncode == 0, "".join(log[-3000:] for log in logs)
    found = [[json.loads(line) for line in log.splitlines() if line.startswith('{"')] for log in logs]
    ranks, predictions = zip(*([each[0], each[1]["predicted"]] for each in found), strict=True)
    assert predictions[0] == predictions[1]  # any process predicts for all
    for rank, predicted in zip(ranks, predictions[0], strict=True):
        assert rank["device"] == f"npu:{rank['rank']}"
        assert {name: rank[name] for name in EXACT} == {name: predicted[name] for name in EXACT}
        print(layout, rank["rank"], rank["peak"], predicted["peak"], predicted["peak"] / rank["peak"] - 1)
        assert abs(predicted["peak"] / rank["peak"] - 1) < 0.05
    worst = max(predictions[0], key=lambda one: one["peak"])
    assert f"at most, on rank {worst['rank']}" in logs[0] and "memory, measured:" in logs[0]


STEP = {"rows": 2, "tokens": 256}
COMPOSED = {"rows": 1, "tokens": 512, "backend": "eager"}
# Axes of two ranks and what is measured on them, one after the other: loading Paddle takes a process longer.
STEPS = {
    "sharding": [
        STEP | {"stage": 2, "micro_batches": 2},
        STEP | {"stage": 3, "micro_batches": 2},
        STEP | {"stage": 3, "recompute": "core_attn", "dtype": "float32"},
        STEP | {"stage": 3, "recompute": "full_attn"},
        STEP | {"stage": 3, "recompute": "full", "dtype": "float32"},
    ],
    "tensor": [
        STEP,
        STEP | {"recompute": "core_attn"},
        STEP | {"recompute": "full_attn"},
        STEP | {"recompute": "full"},
        COMPOSED,
        COMPOSED | {"recompute": "core_attn"},
        COMPOSED | {"recompute": "full_attn"},
    ],
}


@pytest.mark.parametrize("axis", STEPS)
def test_sharding_and_recomputation_are_predicted(tmp_path, axis):
    """Exactly what stays, within 5% the peak, and of each granularity how much less than of the one before."""
    ranks = steps_of(SLICE, {f"{axis}_parallel_degree": 2}, STEPS[axis], tmp_path / "log")
    for found in ranks:
        require_predicted(found, STEPS[axis])
        for before, after in itertools.pairwise(found):
            if {**before["choice"], "recompute": None} == {**after["choice"], "recompute": None}:
                assert after["measured"]["peak"] < before["measured"]["peak"]


# Three parts and a half of one.
UPDATE = """
import paddle
import fusionkit as fk
from fusionkit.eager.fused_adamw import PART_ELEMENTS

tensors = [paddle.full([7 * PART_ELEMENTS // 2048, 1024], 0.5) for _ in range(4)]
before = paddle.device.memory_allocated("npu:0")
with fk.use_backend("eager"):
    fk.fused_adamw(*tensors, learning_rate=0.1, beta1_power=0.9, beta2_power=0.999)
print((paddle.device.max_memory_allocated("npu:0") - before) / PART_ELEMENTS)
"""


def test_a_composed_update_holds_tensors_of_a_parts_size():
    result = run("npu", sys.executable, "-c", UPDATE)
    assert result.returncode == 0, result.stderr[-3000:]
    assert float(result.stdout) == pytest.approx(4 * COMPOSED_UPDATE, rel=1e-4)

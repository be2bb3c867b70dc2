"""The memory that a run predicts of each rank, against the emulator's exact accounting of the same run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.emulator.emulated import run
from tests.emulator.test_sft import created

SCRIPT = Path(__file__).with_name("memory_of_ranks.py")
# Small, and large enough that the framework's own blocks of 256 bytes are no part of it.
SLICE = {
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
SHORT = {"src_length": 50, "max_length": 64}  # stages on the emulated npu hang with large messages
LAYOUTS = {
    "tensor": {"tensor_parallel_degree": 2, "bf16": True},
    "sharding": {"sharding": "stage1", "gradient_accumulation_steps": 2},
    "pipeline": {"pipeline_parallel_degree": 2, "gradient_accumulation_steps": 4, "recompute": True} | SHORT,
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
    launch = ["-m", "paddle.distributed.launch", "--devices", "0,1", "--log_dir", str(tmp_path / "log"), str(SCRIPT)]
    words = [sys.executable, *launch, *(f"--{name}={value}" for name, value in flags.items())]
    root = str(Path(__file__).parents[2])
    result = run("npu", *words, options=("--devices", "2", "--timeout", "280"), timeout=900, PYTHONPATH=root)
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

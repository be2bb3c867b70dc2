"""Every factorisation of eight devices into data, pipeline, sharding and tensor, on the emulated npu, against one
process on the CPU. `make test-layouts` sets up what it needs and runs this file; `make test` does not.

The other choices (sequence parallelism, recomputation, the stage of sharding, interleaving, heads of keys and values,
tied embeddings) change from layout to layout, so that each meets the axes that it works with.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from examples.llama2_13b.model.llama import GRANULARITIES
from examples.llama2_13b.train.metrics import read_log
from tests.emulator.emulated import run
from tests.emulator.test_sft import EXAMPLE, created
from tests.llama.test_sft import weights

DEVICES = 8
STEPS = int(os.environ.get("FUSIONKIT_LAYOUT_STEPS", "10"))
# Rounding grows from step to step.
RELATIVE = 1e-5 if STEPS <= 10 else 1e-4
ROWS = 8
# Eight stages and eight tensor-parallel ranks have something each; 511 tokens do not divide.
SIZES = {
    "vocab_size": 511,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 9,
    "num_attention_heads": 8,
    "head_dim": 16,
    "initializer_range": 0.05,
}
AXES = ("data", "pipeline", "sharding", "tensor")
LAYOUTS = [
    dict(zip(AXES, degrees, strict=True))
    for degrees in itertools.product((1, 2, 4, 8), repeat=4)
    if np.prod(degrees) == DEVICES
]


def name_of(layout):
    return "-".join(f"{axis}{degree}" for axis, degree in layout.items() if degree > 1)


def choices(number, layout):
    """(sizes of the model, flags): what this layout is tried with beside its axes."""
    bit = [number >> place & 1 for place in range(3)]
    grouped, tied = layout["tensor"] <= 4 and bit[0], bit[1]
    sizes = {"num_key_value_heads": 4 if grouped else 8, "tie_word_embeddings": bool(tied)}
    flags = {"recompute": bool(bit[1])}
    flags |= {"recompute_granularity": GRANULARITIES[number // 4 % 3]} if bit[1] else {}
    if layout["tensor"] > 1:
        flags |= {"tensor_parallel_degree": layout["tensor"], "sequence_parallel": not bit[2]}
    if layout["pipeline"] > 1:
        flags |= {"pipeline_parallel_degree": layout["pipeline"]}
        flags |= {"virtual_pp_degree": 2} if layout["pipeline"] <= 4 and bit[0] else {}
    if layout["sharding"] > 1:
        flags |= {"sharding_parallel_degree": layout["sharding"], "sharding": f"stage{1 + bit[2]}"}
    copies = layout["data"] * layout["sharding"]
    return sizes, flags | {"gradient_accumulation_steps": ROWS // copies}


def command(launch, model, output, **flags):
    data = Path(model).with_name("data")
    folders = {"model_name_or_path": model, "dataset_name_or_path": data, "output_dir": output}
    steps = {"max_steps": STEPS, "learning_rate": 1e-3, "src_length": 60, "max_length": 96}
    words = [f"--{name}={value}" for name, value in {**steps, **folders, **flags}.items()]
    return [sys.executable, *launch, str(EXAMPLE / "sft.py"), *words]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """(model's folder, output) of one process on the CPU, by the model's sizes. An epoch of 60 rows ends with four."""

    @functools.cache
    def trained(*sizes):
        folder = tmp_path_factory.mktemp("alone")
        model = created(folder, SIZES | dict(sizes))
        train = Path(model).with_name("data") / "train.json"
        train.write_text("\n".join(train.read_text(encoding="utf-8").splitlines()[:60]), encoding="utf-8")
        words = command([], model, folder / "out", gradient_accumulation_steps=ROWS)
        result = subprocess.run(words, capture_output=True, text=True, timeout=3000)
        assert result.returncode == 0, result.stderr[-4000:]
        return model, folder / "out"

    return lambda sizes: trained(*sizes.items())


@pytest.mark.parametrize("number", range(len(LAYOUTS)), ids=list(map(name_of, LAYOUTS)))
def test_a_layout_trains_as_one_process(alone, tmp_path, number):
    sizes, flags = choices(number, LAYOUTS[number])
    model, expected = alone(sizes)
    devices = ",".join(map(str, range(DEVICES)))
    launch = ["-m", "paddle.distributed.launch", "--devices", devices, "--log_dir", str(tmp_path / "log")]
    words = command(launch, model, tmp_path / "out", **flags)
    result = run("npu", *words, options=("--devices", str(DEVICES), "--timeout", "600"), timeout=3500)
    logs = "".join(path.read_text()[-2000:] for path in sorted((tmp_path / "log").glob("workerlog.*")))
    assert result.returncode == 0, logs
    lines, wanted = (read_log(folder / "log.jsonl") for folder in (tmp_path / "out", expected))
    assert len(lines) == len(wanted) == STEPS
    losses, wanted_losses = ([line["loss"] for line in each] for each in (lines, wanted))
    print(json.dumps({"layout": LAYOUTS[number], **sizes, **flags, "apart": apart(losses, wanted_losses)}))
    np.testing.assert_allclose(losses, wanted_losses, rtol=RELATIVE)
    np.testing.assert_allclose(lines[-1]["eval_loss"], wanted[-1]["eval_loss"], rtol=RELATIVE)
    first, ours, theirs = (weights(Path(folder)) for folder in (model, tmp_path / "out", expected))
    assert ours.keys() == theirs.keys()
    # AdamW's first steps take the sign of gradients that may be rounding alone.
    assert distance(ours, theirs) < 1e-3 * distance(first, theirs)


def apart(losses, wanted):
    """The largest relative difference of each tenth of the steps: how fast rounding grows."""
    relative = np.abs(np.array(losses) / wanted - 1)
    return [float(f"{part.max():.1g}") for part in np.array_split(relative, 10)]


def distance(one, other):
    return float(np.sqrt(sum(np.sum((one[name] - other[name]) ** 2) for name in other)))

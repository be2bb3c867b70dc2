"""The Llama example in stages on emulated devices, over Paddle's own sends and receives, against one on the CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from examples.llama2_13b.train.metrics import read_log
from tests.emulator.emulated import run
from tests.emulator.test_sft import EXAMPLE, SMALL, created

FLAGS = {
    "src_length": 100,
    "max_length": 128,
    "gradient_accumulation_steps": 3,
    "per_device_train_batch_size": 2,
    "max_steps": 5,
    "learning_rate": 1e-3,
}


def command(launch, model, output, **flags):
    data = Path(model).with_name("data")
    folders = {"model_name_or_path": model, "dataset_name_or_path": data, "output_dir": output}
    words = [f"--{name}={value}" for name, value in {**FLAGS, **folders, **flags}.items()]
    return [sys.executable, *launch, str(EXAMPLE / "sft.py"), *words]


def test_interleaved_stages_on_devices_train_as_one_process(tmp_path):
    model = created(tmp_path, SMALL | {"num_hidden_layers": 5})
    launch = ["-m", "paddle.distributed.launch", "--devices", "0,1", "--log_dir", str(tmp_path / "log")]
    divided = {"pipeline_parallel_degree": 2, "virtual_pp_degree": 2}
    words = command(launch, model, tmp_path / "two", **divided)
    result = run("npu", *words, options=("--devices", "2", "--timeout", "120"))
    logs = "".join(path.read_text()[-3000:] for path in sorted((tmp_path / "log").glob("workerlog.*")))
    assert result.returncode == 0, logs
    assert "on 2 processes, 2 stages to a copy" in logs
    alone = subprocess.run(command([], model, tmp_path / "one"), capture_output=True, text=True, timeout=300)
    assert alone.returncode == 0, alone.stderr
    two, one = (read_log(tmp_path / name / "log.jsonl") for name in ("two", "one"))
    np.testing.assert_allclose([line["loss"] for line in two], [line["loss"] for line in one], rtol=1e-5)
    np.testing.assert_allclose(two[-1]["eval_loss"], one[-1]["eval_loss"], rtol=1e-5)

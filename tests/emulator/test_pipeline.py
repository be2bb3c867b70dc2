"""The Llama example in stages on emulated devices, over Paddle's own sends and receives, against one on the CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from examples.llama2_13b.train.metrics import read_log
from tests.emulator.emulated import run
from tests.emulator.test_collectives import checked
from tests.emulator.test_sft import EXAMPLE, SMALL, WIDE, created
from tests.hanging import HANGING
from tests.launch import LAUNCH

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


# The timeout; on rank 0 two states of a send; with each of two sizes 4 messages, but for stages between the ends their
# sum, and of a schedule 2 totals and the gradient of each chunk: 7 for one chunk and two.
@pytest.mark.parametrize("stages, checks", [(2, [27, 25]), (3, [27, 23, 25])])
def test_messages_of_any_size_pass_between_stages(stages, checks, tmp_path):
    counts = checked("exchanges.py", stages, tmp_path)
    assert counts == {f"npu:{rank}": count for rank, count in enumerate(checks)}


INTERLEAVED = (SMALL | {"num_hidden_layers": 5}, {"virtual_pp_degree": 2})
# A message of 256 tokens is 512 KiB: more than the emulator keeps of one on its way.
LARGE = (WIDE | {"num_hidden_layers": 3}, {"zero_padding": True, "max_length": 256, "per_device_train_batch_size": 1})


@pytest.mark.parametrize("sizes, flags", [INTERLEAVED, LARGE], ids=["interleaved", "large"])
def test_stages_on_devices_train_as_one_process(sizes, flags, tmp_path):
    model = created(tmp_path, sizes)
    launch = [LAUNCH, "--devices", "0,1", "--log_dir", str(tmp_path / "log")]
    words = command(launch, model, tmp_path / "two", pipeline_parallel_degree=2, **flags)
    result = run("npu", *words, options=("--devices", "2", "--timeout", "120"))
    logs = "".join(path.read_text()[-3000:] for path in sorted((tmp_path / "log").glob("workerlog.*")))
    assert result.returncode == 0, logs
    assert "on 2 processes, 2 stages to a copy" in logs
    flags = {name: value for name, value in flags.items() if name != "virtual_pp_degree"}
    alone = subprocess.run(
        command([], model, tmp_path / "one", **flags), capture_output=True, text=True, timeout=HANGING
    )
    assert alone.returncode == 0, alone.stderr
    two, one = (read_log(tmp_path / name / "log.jsonl") for name in ("two", "one"))
    np.testing.assert_allclose([line["loss"] for line in two], [line["loss"] for line in one], rtol=1e-5)
    np.testing.assert_allclose(two[-1]["eval_loss"], one[-1]["eval_loss"], rtol=1e-5)

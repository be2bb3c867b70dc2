"""Fine-tuning on four processes on the CPU: two copies of the model, each divided over two, against one process."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from examples.llama2_13b.metrics import read_log
from examples.llama2_13b.sft import sft
from tests.llama.conftest import DATA, EXAMPLE
from tests.llama.test_sft import weights

FLAGS = {
    "dataset_name_or_path": str(DATA),
    "src_length": 100,
    "max_length": 255,  # rows are padded to a multiple of the ranks
    "max_steps": 2,
    "save_steps": 1,
    "learning_rate": 1e-3,
}


def launched(processes, output, model, log, **flags):
    launch = ["-m", "paddle.distributed.launch", "--nproc_per_node", str(processes), "--log_dir", str(log)]
    given = {**FLAGS, "model_name_or_path": str(model), "output_dir": str(output), **flags}
    words = [f"--{name}={value}" for name, value in given.items()] + ["--zero_padding"]
    command = [sys.executable, *launch, str(EXAMPLE / "sft.py"), *words]
    environment = os.environ | {"PYTHONPATH": str(EXAMPLE.parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    logs = "".join(path.read_text()[-3000:] for path in sorted(log.glob("workerlog.*")))
    return done.returncode, logs


def test_data_and_tensor_parallelism_together_train_as_one_process(tiny_folder, sft_flags, tmp_path):
    code, logs = launched(4, tmp_path / "four", tiny_folder, tmp_path / "log", tensor_parallel_degree=2)
    assert code == 0, logs
    assert "on 4 processes, 2 of which divide the layers and the sequence of each copy" in logs
    assert sft(sft_flags(**FLAGS, output_dir=str(tmp_path / "one"), per_device_train_batch_size=2, warmup_steps=0)) == 0
    four, one = (read_log(tmp_path / name / "log.jsonl") for name in ("four", "one"))
    for name in ("loss", "learning_rate"):
        np.testing.assert_allclose([line[name] for line in four], [line[name] for line in one], rtol=1e-5)
    assert four[-1]["eval_loss"] == pytest.approx(one[-1]["eval_loss"], rel=1e-5)
    trained, expected = weights(tmp_path / "four"), weights(tmp_path / "one")
    assert trained.keys() == expected.keys() and len(trained) == 21
    first = weights(tiny_folder)
    moved, apart = (
        np.sqrt(sum(np.sum((other[name] - expected[name]) ** 2) for name in expected)) for other in (first, trained)
    )
    assert apart < 1e-3 * moved  # AdamW's first steps take the sign of gradients that may be rounding alone
    assert (tmp_path / "four" / "checkpoint-1" / "trainer_state.json").exists()


def test_processes_that_make_no_whole_copies_are_refused(sft_flags, tmp_path):
    with pytest.raises(
        ValueError, match="--tensor_parallel_degree must be a divisor of the number of processes 1, got 2"
    ):
        sft(sft_flags(tensor_parallel_degree=2))
    with pytest.raises(ValueError, match="--sequence_parallel must be true where tensor_parallel_degree is 1"):
        sft_flags(sequence_parallel=False)
    assert not (tmp_path / "run").exists()

"""Fine-tuning in stages by the command, on processes on the CPU, against one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from examples.llama2_13b.create import CreateFlags, create
from examples.llama2_13b.sft import sft
from examples.llama2_13b.train.metrics import read_log
from tests.llama.conftest import DATA, EXAMPLE
from tests.llama.test_sft import weights
from tests.llama.test_sft_processes import command, environment, launched, printed, wait_until

# Three micro-batches are no multiple of two stages, and one row is too few for the last.
FLAGS = {
    "gradient_accumulation_steps": 3,
    "per_device_train_batch_size": 2,
    "zero_padding": False,
    "max_steps": 10,
    "save_steps": 5,
    "eval_steps": 5,
    "warmup_steps": 0,
}


@pytest.fixture(scope="module")
def five_layers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("five")
    sizes = json.loads((EXAMPLE / "configs" / "tiny.json").read_text()) | {"num_hidden_layers": 5}
    (folder / "config.json").write_text(json.dumps(sizes))
    create(CreateFlags(str(folder / "config.json"), str(DATA), str(folder / "model")))
    return folder / "model"


@pytest.fixture(scope="module")
def eleven_samples(tmp_path_factory):
    """An epoch has a step of three micro-batches and one of two rows and one: five rows."""
    folder = tmp_path_factory.mktemp("eleven")
    for split, count in (("train", 11), ("dev", 5)):
        lines = (DATA / f"{split}.json").read_text(encoding="utf-8").splitlines()[:count]
        (folder / f"{split}.json").write_text("\n".join(lines), encoding="utf-8")
    return str(folder)


def test_a_run_in_stages_equals_one_process_and_resumes_in_others(five_layers, eleven_samples, sft_flags, tmp_path):
    """Two stages of two ranks each; from its checkpoint two interleaved stages, from theirs one process."""
    flags = FLAGS | {"dataset_name_or_path": eleven_samples}
    one = sft_flags(**flags, model_name_or_path=str(five_layers), output_dir=str(tmp_path / "one"), max_length=255)
    assert sft(one) == 0
    divided = {"pipeline_parallel_degree": 2, "tensor_parallel_degree": 2}
    code, logs = launched(4, tmp_path / "four", five_layers, tmp_path / "log", **flags, **divided)
    assert code == 0, logs
    assert "on 4 processes, 2 stages to a copy, 2 of which divide the layers and the sequence of each copy" in logs
    interleaved = {"pipeline_parallel_degree": 2, "virtual_pp_degree": 2, "recompute": True}
    again = flags | {"resume_from_checkpoint": str(tmp_path / "four" / "checkpoint-5")}
    code, logs = launched(2, tmp_path / "two", five_layers, tmp_path / "log", **again, **interleaved)
    assert code == 0, logs
    four, two, one = (read_log(tmp_path / name / "log.jsonl") for name in ("four", "two", "one"))
    for name in ("loss", "learning_rate", "eval_loss"):
        expected = [line.get(name, 0) for line in one]
        np.testing.assert_allclose([line.get(name, 0) for line in four], expected, rtol=1e-5)
        np.testing.assert_allclose([line.get(name, 0) for line in two], expected[5:], rtol=1e-5)
    first, expected = weights(five_layers), weights(tmp_path / "one")
    moved = apart(first, expected)
    for name in ("four", "two"):
        trained = weights(tmp_path / name)
        assert trained.keys() == expected.keys() and len(trained) == 5 * 9 + 3
        assert apart(trained, expected) < 1e-3 * moved


def apart(one, other):
    return np.sqrt(sum(np.sum((one[name] - other[name]) ** 2) for name in other))


def test_a_killed_stage_ends_the_others_with_its_name(five_layers, eleven_samples, tmp_path):
    output, log = tmp_path / "out", tmp_path / "log"
    flags = FLAGS | {"dataset_name_or_path": eleven_samples, "pipeline_parallel_degree": 2, "max_steps": 2000}
    words = command(2, output, five_layers, log, **flags | {"save_steps": 2000, "eval_steps": 2000})
    with subprocess.Popen(words, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as launcher:
        try:
            wait_until(lambda: (output / "log.jsonl").exists() and read_log(output / "log.jsonl"), launcher)
            kill_second_of_two(launcher.pid, launcher)
            assert launcher.wait(timeout=60) != 0
        finally:
            launcher.kill()
    assert "rank 1 must answer" in printed(log), printed(log)
    assert "process 0 of 2: pipeline 0 of 2" in printed(log), printed(log)  # whichever call met it
    assert "group pipeline: from 0 on the processes 0 1" in printed(log), printed(log)


def kill_second_of_two(launcher, process):
    """The launcher stands still meanwhile: on a slow machine it would end the first before that has missed the second.

    Args:
        launcher: number of its process.
        process: the one that the test started; it must live on.
    """
    first, second = (stage_of(launcher, rank) for rank in (0, 1))
    os.kill(launcher, signal.SIGSTOP)
    try:
        os.kill(second, signal.SIGKILL)
        wait_until(lambda: has_ended(first), process)
    finally:
        os.kill(launcher, signal.SIGCONT)


def has_ended(process):
    """Of a child that nobody has waited for."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def stage_of(launcher, rank):
    """The launcher's process of that rank."""
    for children in Path(f"/proc/{launcher}/task").glob("*/children"):
        for process in children.read_text().split():
            if f"PADDLE_TRAINER_ID={rank}\0" in Path(f"/proc/{process}/environ").read_text():
                return int(process)
    raise AssertionError(f"no child of {launcher} has rank {rank}")

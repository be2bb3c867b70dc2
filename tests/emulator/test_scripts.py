"""The scripts for eight devices: as they stand with a small model on emulated devices, and what they start for 13B."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from examples.llama2_13b.folders.adapter_config import TARGETS
from examples.llama2_13b.io.flags import parse
from examples.llama2_13b.lora import LoraFlags
from examples.llama2_13b.model import Llama
from examples.llama2_13b.model.lora import LoraLlama
from examples.llama2_13b.pretrain import PretrainFlags
from examples.llama2_13b.sft import SftFlags
from examples.llama2_13b.train.metrics import read_log
from tests.hanging import HANGING
from tests.launch import LAUNCH

SCRIPTS = Path(__file__).parents[2] / "examples" / "llama2_13b" / "scripts"
FLAGS = {"sft": SftFlags, "lora": LoraFlags, "pretrain": PretrainFlags}
DATA = {"sft": "--dataset_name_or_path", "lora": "--dataset_name_or_path", "pretrain": "--input_dir"}


def run(name, folder, *words, first):
    path = os.pathsep.join([str(first), os.environ["PATH"]])
    command = ["bash", SCRIPTS / f"run_{name}_n1c8.sh", *words]
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=HANGING, check=False
    )
    logs = "".join(path.read_text()[-2000:] for path in folder.glob("output/log/workerlog.*"))
    assert done.returncode == 0, done.stderr[-2000:] + logs
    return done.stdout


PYTHON = """#!/bin/sh
if [ "$2" = paddle.distributed.launch ]; then shift 2; set -- "{launcher}" "$@"; fi
exec "{python}" "$@"
"""


def python_with(launcher, folder):
    """A folder with a `python` that starts `launcher` in place of Paddle's."""
    program = folder / "bin" / "python"
    program.parent.mkdir()
    program.write_text(PYTHON.format(launcher=launcher, python=sys.executable))
    program.chmod(0o755)
    return program.parent


# The three start their processes by the same lines: one of them by Paddle's launcher.
@pytest.mark.parametrize("name, output", [("sft", "sft"), ("lora", "lora"), ("pretrain", "pretrained")])
def test_a_script_runs_to_its_end_with_a_small_model(tmp_path, name, output):
    """Wrong settings for emulated devices would end it: only the devices and the sizes differ."""
    first = Path(sys.executable).parent if name == "sft" else python_with(LAUNCH, tmp_path)
    run(name, tmp_path, "--config", "tiny", "--save_steps", "2", first=first)
    folder = tmp_path / "output" / "tiny" / output
    log = read_log(folder / "log.jsonl")
    assert [line["step"] for line in log] == [1, 2] and 5 < log[-1]["eval_loss"] < 7
    base = tmp_path / "output" / "tiny" / "model"
    model = LoraLlama.with_adapter(base, folder) if name == "lora" else Llama.from_pretrained(folder)
    assert model.config.num_attention_heads == 8
    assert (folder / "checkpoint-2" / "trainer_state.json").exists()
    first = (tmp_path / "output" / "log" / "workerlog.0").read_text()
    assert "bfloat16 arithmetic on 8 processes" in first
    predicted, measured = (
        float(re.search(rf"memory, {word}: (\S+) GB", first)[1]) for word in ("predicted", "measured")
    )
    assert 0.95 * predicted < measured < 1.3 * predicted  # small tensors have blocks, and an adapter more of them


@pytest.mark.parametrize("name", FLAGS)
def test_a_script_starts_13b_on_eight_devices_with_the_published_settings(tmp_path, name):
    """The command line goes to a `python` that prints it."""
    stub = tmp_path / "bin" / "python"
    stub.parent.mkdir()
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stub.chmod(0o755)
    given = ("--model_name_or_path", "a model", DATA[name], "data", "--output_dir", "out", "--max_steps", "500")
    words = run(name, tmp_path, *given, first=stub.parent).splitlines()
    assert words[:6] == ["-m", "paddle.distributed.launch", "--devices", "0,1,2,3,4,5,6,7", "--log_dir", "output/log"]
    assert words[6] == str(SCRIPTS.parent / f"{name}.py")
    flags = parse(FLAGS[name], words[7:], name)
    assert (flags.model_name_or_path, flags.max_steps, flags.bf16) == ("a model", 500, True)
    if name == "lora":
        assert (flags.adapter.rank, flags.adapter.alpha, flags.adapter.targets) == (32, 64, TARGETS)
    expected = {"sft": (8, "", 2, 64, 3e-6), "lora": (8, "", 2, 64, 3e-6), "pretrain": (4, "stage1", 2, 32, 1e-5)}[name]
    assert expected == (
        flags.tensor_parallel_degree,
        flags.sharding,
        flags.per_device_train_batch_size,
        flags.gradient_accumulation_steps,
        flags.learning_rate,
    )

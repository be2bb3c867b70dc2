"""Fine-tuning on several processes on the CPU: copies of the model, also divided over two, against one process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from examples.llama2_13b.parallel.mesh import Mesh
from examples.llama2_13b.parallel.pipeline import PipelineParallel
from examples.llama2_13b.parallel.tensor_parallel import TensorParallel
from examples.llama2_13b.pretrain import PretrainFlags, _train
from examples.llama2_13b.sft import fine_tune, sft
from examples.llama2_13b.train import training_state
from examples.llama2_13b.train.metrics import read_log
from tests.hanging import HANGING
from tests.launch import LAUNCH
from tests.llama.conftest import DATA, EXAMPLE
from tests.llama.test_sft import weights

FLAGS = {
    "src_length": 100,
    "max_length": 255,  # rows are padded to a multiple of the ranks
    "max_steps": 2,
    "save_steps": 1,
    "learning_rate": 1e-3,
}


def command(processes, output, model, log, entry="sft", launch=("-m", "paddle.distributed.launch"), **flags):
    launch = [*launch, "--nproc_per_node", str(processes), "--log_dir", str(log)]
    given = {**FLAGS, "model_name_or_path": str(model), "output_dir": str(output), "zero_padding": True, **flags}
    file = str(EXAMPLE / f"{entry}.py")
    return [sys.executable, *launch, file, *(f"--{name}={value}" for name, value in given.items())]


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1"}


def printed(log):
    return "".join(path.read_text()[-3000:] for path in sorted(log.glob("workerlog.*")))


def launched(processes, output, model, log, **flags):
    words = command(processes, output, model, log, launch=[LAUNCH], **flags)
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=HANGING, check=False)
    return done.returncode, printed(log)


@pytest.mark.parametrize(
    "copies",
    [{}, *({"sharding": stage, "gradient_accumulation_steps": 2} for stage in ("stage2", "stage3"))],
    ids=["data", "stage2", "stage3"],
)
def test_copies_and_tensor_parallelism_together_train_as_one_process(
    tiny_folder, few_samples, sft_flags, tmp_path, copies
):
    flags = {"dataset_name_or_path": few_samples, "tensor_parallel_degree": 2} | copies
    code, logs = launched(4, tmp_path / "four", tiny_folder, tmp_path / "log", **flags)
    assert code == 0, logs
    assert "on 4 processes, 2 of which divide the layers and the sequence of each copy" in logs
    assert ("2 of which divide the optimizer's work" in logs) == bool(copies)
    assert ("optimizer's work and the matrices" in logs) == (copies.get("sharding") == "stage3")
    rows = 2 * copies.get("gradient_accumulation_steps", 1)
    alone = {**FLAGS, "output_dir": str(tmp_path / "one"), "per_device_train_batch_size": rows, "warmup_steps": 0}
    assert sft(sft_flags(**alone)) == 0
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


@pytest.mark.parametrize("in_background", [False, True], ids=["at_once", "in_background"])
def test_a_process_that_dies_while_it_saves_leaves_the_checkpoint_before(
    tiny_folder, few_samples, sft_flags, tmp_path, in_background
):
    """Two owners of moments. One process goes on from there as if nothing had been."""
    flags = {"dataset_name_or_path": few_samples, "sharding": "stage1", "max_steps": 3}
    flags |= {"async_save": in_background}
    entry = Path(__file__).with_name("dying_writer")
    code, logs = launched(2, tmp_path / "two", tiny_folder, tmp_path / "log", entry=entry, **flags)
    assert code != 0 and "must answer" in logs, logs
    names = {path.name for path in (tmp_path / "two").iterdir() if path.name.endswith(("checkpoint-1", "saving"))}
    assert names == {"checkpoint-1"}
    one = {**FLAGS, "per_device_train_batch_size": 2, "max_steps": 3, "warmup_steps": 0}
    assert sft(sft_flags(**one, output_dir=str(tmp_path / "two"), resume_from_checkpoint="last")) == 0
    assert sft(sft_flags(**one, output_dir=str(tmp_path / "one"))) == 0
    resumed, whole = (read_log(tmp_path / name / "log.jsonl") for name in ("two", "one"))
    np.testing.assert_allclose([line["loss"] for line in resumed], [line["loss"] for line in whole], rtol=1e-5)


def uneven(folder):
    """Three rows for training and one for evaluation, one of them of two tokens."""
    folder.mkdir()
    lines = (DATA / "train.json").read_text(encoding="utf-8").splitlines()
    (folder / "train.json").write_text("\n".join([lines[0], '{"src": "", "tgt": "a"}', lines[1]]), encoding="utf-8")
    (folder / "dev.json").write_text(lines[2], encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize(
    "processes, degree, sharding", [(4, 2, ""), (4, 1, ""), (4, 1, "stage3")], ids=["tensor2-data2", "data4", "stage3"]
)
def test_copies_without_rows_change_no_loss(tiny_folder, sft_flags, tmp_path, processes, degree, sharding):
    """An epoch's last step has one row, or three for four copies in two micro-batches; evaluation has one."""
    rows = {(4, 2): 2, (4, 1): 8}[processes, degree]
    flags = {"dataset_name_or_path": uneven(tmp_path / "data"), "zero_padding": False, "max_steps": 4}
    accumulation = {"gradient_accumulation_steps": rows * degree // processes}
    given = flags | accumulation | {"tensor_parallel_degree": degree} | ({"sharding": sharding} if sharding else {})
    code, logs = launched(processes, tmp_path / "many", tiny_folder, tmp_path / "log", **given)
    assert code == 0, logs
    one = {**FLAGS, **flags, "output_dir": str(tmp_path / "one"), "warmup_steps": 0}
    assert sft(sft_flags(**one, per_device_train_batch_size=rows)) == 0
    many, one = (read_log(tmp_path / name / "log.jsonl") for name in ("many", "one"))
    np.testing.assert_allclose([line["loss"] for line in many], [line["loss"] for line in one], rtol=1e-5)
    assert many[-1]["eval_loss"] == pytest.approx(one[-1]["eval_loss"], rel=1e-5)


def test_a_signal_to_the_launcher_leaves_a_checkpoint_for_as_many_rows(tiny_folder, few_samples, sft_flags, tmp_path):
    """The launcher sends SIGTERM to its processes three times. One process may not go on: its steps see fewer rows."""
    output, log = tmp_path / "two", tmp_path / "log"
    flags = FLAGS | {"dataset_name_or_path": str(few_samples), "lr_scheduler_type": "constant"}
    flags |= {"gradient_accumulation_steps": 8}  # so that steps take their time
    words = command(2, output, tiny_folder, log, **flags | {"max_steps": 200, "save_steps": 100})
    with subprocess.Popen(words, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: (output / "log.jsonl").exists() and read_log(output / "log.jsonl"), process)
            process.terminate()
            process.wait(timeout=HANGING)
        finally:
            process.kill()
    (checkpoint,) = training_state.checkpoints(output)
    done = training_state.load(checkpoint).step
    flags |= {"max_steps": done + 2, "warmup_steps": 0}
    with pytest.raises(ValueError, match=r"copies of the model must be 16 as in .*checkpoint-\d+, got 8"):
        sft(sft_flags(**flags, output_dir=str(output), resume_from_checkpoint="last"))
    code, logs = launched(2, output, tiny_folder, log, **flags, resume_from_checkpoint="last")
    assert code == 0, logs
    assert sft(sft_flags(**flags, output_dir=str(tmp_path / "one"), per_device_train_batch_size=2)) == 0
    two, one = (read_log(folder / "log.jsonl") for folder in (output, tmp_path / "one"))
    np.testing.assert_allclose([line["loss"] for line in two], [line["loss"] for line in one], rtol=1e-4)


def wait_until(condition, process):
    deadline = time.monotonic() + HANGING
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def test_processes_that_make_no_whole_copies_are_refused(sft_flags, tmp_path):
    with pytest.raises(
        ValueError, match="--tensor_parallel_degree must be a divisor of the number of processes 1, got 2"
    ):
        sft(sft_flags(tensor_parallel_degree=2))
    with pytest.raises(ValueError, match="--sequence_parallel must be true where tensor_parallel_degree is 1"):
        sft_flags(sequence_parallel=False)
    for flags, rule in (
        ({"sharding": "stage4"}, "--sharding must be stage1.*, or empty, got stage4"),
        ({"sharding_parallel_degree": 2}, "--sharding must be given with sharding_parallel_degree 2, got "),
        ({"sharding_parallel_degree": 1, "sharding": "stage1"}, "--sharding must be empty with .* 1, got stage1"),
        ({"sharding_parallel_degree": 0}, "--sharding_parallel_degree must be at least 1, or -1, got 0"),
    ):
        with pytest.raises(ValueError, match=rule):
            sft_flags(**flags)
    with pytest.raises(
        ValueError, match="--pipeline_parallel_degree must be a divisor of the number of processes 1, got 2"
    ):
        sft(sft_flags(pipeline_parallel_degree=2))
    with pytest.raises(ValueError, match="--virtual_pp_degree must be 1 where pipeline_parallel_degree is 1, got 2"):
        sft_flags(virtual_pp_degree=2)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("axis, rule", [("pipeline", "num_hidden_layers"), ("tensor", "num_attention_heads")])
def test_a_layout_that_does_not_fit_the_model_is_refused_before_data_are_read(tiny_folder, sft_flags, axis, rule):
    """On three processes; the model has two layers and four heads."""
    group = SimpleNamespace(world_size=3, rank=1)
    mesh = Mesh(**{axis: {"pipeline": PipelineParallel, "tensor": TensorParallel}[axis](group)})
    nowhere = {"model_name_or_path": str(tiny_folder), "output_dir": "nowhere", "input_dir": "nowhere"}
    for work in (
        lambda: fine_tune(sft_flags(dataset_name_or_path="nowhere"), mesh, None),
        lambda: _train(PretrainFlags(**nowhere), mesh),
    ):
        with pytest.raises(ValueError, match=f"{rule} must be .*The nearest "):
            work()

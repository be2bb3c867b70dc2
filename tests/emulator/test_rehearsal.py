"""`fusionkit emulate --rehearse`: mistakes are found and named, memory is what a run that computes would account."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from examples.llama2_13b.create import CreateFlags, create
from examples.llama2_13b.train.metrics import read_log
from fusionkit.cli import main
from tests.emulator.emulated import run
from tests.emulator.measured_steps import steps_of
from tests.emulator.test_memory import SLICE
from tests.launch import LAUNCH

MISTAKES = Path(__file__).with_name("mistakes.py")
NOTE = "rehearsal: nothing was computed"


def rehearse(*command, devices=1, options=(), **environment):
    given = ("--rehearse", "--devices", str(devices), *options)
    return run("npu", sys.executable, *command, options=given, **environment)


def line(text):
    """The place of a line of mistakes.py, as the report names it."""
    number = 1 + next(i for i, each in enumerate(MISTAKES.read_text().splitlines()) if text in each)
    return f"mistakes.py:{number}"


ADD_UP = line("line of add_up")
# Mistake -> what the report says in this order.
FOUND = {
    "skip": [
        "rank 1 must answer within 4 s, got a rank that has left",
        f"rank 0: all_reduce (sum) of 4096 float32 as call 1 at .*{line('left out by rank 1')}",
        f"rank 1: all_reduce (sum) of 4096 float32 as call 1 at .*{line('made by both')}",
    ],
    "other_shape": [
        f"rank 0: all_reduce .sum. of 4096 float32 as call 1 at .*{ADD_UP}",
        f"rank 1: all_reduce .sum. of 4097 float32 as call 1 at .*{ADD_UP}",
    ],
    "other_dtype": [f"rank 1: all_reduce .sum. of 4096 bfloat16 as call 1 at .*{ADD_UP}"],
    "other_op": [f"rank 1: all_reduce .max. of 4096 float32 as call 1 at .*{ADD_UP}"],
    "layer": [
        f"rank 0: all_gather of 4096 float32 as call 3 at .*{line('what comes after the layers')}",
        f"rank 1: all_reduce .sum. of 4096 float32 as call 3 at .*{line('sum of a layer')}",
    ],
    "stage": [
        "unequal numbers of layers:",
        "  rank 0: fewest",
        "  rank 1: 3 for each 2 of rank 0",
        f"matmul of .*{line('a layer of the stage')} in stage: 2 on rank 0, 3 on rank 1",
        "add --uneven if the stages are meant to differ",
    ],
    "deadlock": [
        "rank . must answer within 4 s, got nothing",
        f"rank 0: in recv of 4096 float32 from rank 1 at .*{line('both wait for the other')}",
        f"rank 1: in recv of 4096 float32 from rank 0 at .*{line('both wait for the other')}",
    ],
    "memory": [
        f"on rank 1: out of memory. 2.000 GiB more were asked for by .*{line('2 GiB too much')}",
        f"1.000  forward, by full of .*{line('kept = ')}",
    ],
}


@pytest.mark.parametrize("mistake", FOUND)
def test_a_mistake_is_found_and_named(tmp_path, mistake):
    launch = (LAUNCH, "--devices", "0,1", "--log_dir", str(tmp_path), str(MISTAKES), mistake)
    root = str(Path(__file__).parents[2])
    ran = rehearse(*launch, devices=2, options=("--memory", "2.5GiB", "--timeout", "4"), PYTHONPATH=root)
    assert ran.returncode == 1 and NOTE in ran.stderr, ran.stderr
    report = ran.stderr[ran.stderr.index("FOUND") :]
    assert re.search(".*".join(each.replace("(sum)", ".sum.") for each in FOUND[mistake]), report, re.DOTALL), report


def test_equal_stages_with_unequal_ends_are_no_mistake_nor_are_stages_that_are_meant_to_differ(tmp_path):
    root, report = str(Path(__file__).parents[2]), tmp_path / "report.json"
    for mistake, options in (("even", ()), ("stage", ("--uneven",))):
        launch = (LAUNCH, "--devices", "0,1", "--log_dir", str(tmp_path), str(MISTAKES), mistake)
        ran = rehearse(*launch, devices=2, options=("--report", str(report), *options), PYTHONPATH=root)
        assert ran.returncode == 0 and "FOUND" not in ran.stderr, ran.stderr
        told = json.loads(report.read_text())
        assert told["unequal_stages"] == [] and all(rank["forward"] for rank in told["ranks"])


SIZES = SLICE | {"vocab_size": 511, "hidden_size": 256, "intermediate_size": 320, "head_dim": 32}
# Axes of two ranks, and steps on each.
STEP = {"rows": 2, "tokens": 64}
LAYOUTS = {
    "tensor": [STEP | {"recompute": "full"}],
    "pipeline": [STEP | {"micro_batches": 2}],
}


@pytest.mark.parametrize("axis", LAYOUTS)
def test_memory_is_that_of_a_run_that_computes(tmp_path, axis):
    """What Paddle accounts, and what the rehearsal's own report says of its last step."""
    degrees, report = {f"{axis}_parallel_degree": 2}, tmp_path / "report.json"
    computed = steps_of(SIZES, degrees, LAYOUTS[axis], tmp_path / "computed")
    options = ("--rehearse", "--report", str(report), "--uneven")  # three layers on two stages
    rehearsed = steps_of(SIZES, degrees, LAYOUTS[axis], tmp_path / "rehearsed", options=options)
    for one, other in zip(computed, rehearsed, strict=True):
        assert len(one) == len(other) == len(LAYOUTS[axis])
        for real, dry in zip(one, other, strict=True):
            print(axis, real["rank"], real["choice"], real["measured"], dry["measured"], real["host"], dry["host"])
            assert dry["measured"] | {"peak": 0} == real["measured"] | {"peak": 0}
            assert dry["measured"]["peak"] == pytest.approx(real["measured"]["peak"], rel=0.01)
    told = json.loads(report.read_text())
    assert told["note"] == NOTE
    for rank, (told_rank, dry) in enumerate(zip(told["ranks"], rehearsed, strict=True)):
        assert told_rank["process"]["rank"] == rank
        most = max(each["measured"]["peak"] for each in dry)
        assert told_rank["peak"]["bytes"] == pytest.approx(most, rel=0.01)
        assert sum(told_rank["peak"]["parts"].values()) == pytest.approx(told_rank["peak"]["bytes"], rel=1e-3)


# A weight of 4 MiB is large, the loss and the power of beta are small.
STEP_OF_A_LAYER = """
import fusionkit as fk, paddle

weight = paddle.create_parameter([1024, 1024], "float32")
optimizer = paddle.optimizer.AdamW(parameters=[weight])
norm = paddle.matmul(paddle.ones([512, 1024]), weight).square().sum()
norm.backward()
optimizer.step()
print(fk.is_rehearsal(), float(norm), float(paddle.isfinite(weight).all()), float(paddle.isnan(weight).any()))
print((paddle.to_tensor([1.5, 2.0]) * 2).tolist(), paddle.to_tensor(list(range(9000)))[8999].item())
print(weight.numpy().sum() / 2**20, paddle.argmax(weight).item())
"""


def test_values_that_are_read_are_stand_ins():
    ran = rehearse("-W", "ignore", "-c", STEP_OF_A_LAYER)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == ["True 1.0 1.0 0.0", "[3.0, 4.0] 8999", "1.0 1"]
    assert "two steps show the peak of a run" not in ran.stderr  # nothing came after the update
    assert f"fusionkit: emulated npu, 1 device of 4.0 GiB: {NOTE}" in ran.stderr


def test_a_result_whose_shape_depends_on_values_is_an_error():
    ran = rehearse("-c", "import paddle; x = paddle.ones([2048]); paddle.repeat_interleave(x, x.astype('int32'))")
    assert ran.returncode == 1 and "depends on values, and nothing was computed" in ran.stderr


def test_the_example_rehearses_without_weights_and_writes_no_model(tmp_path):
    """`lora` goes through all that `sft` does."""
    example, root = Path(__file__).parents[2] / "examples" / "llama2_13b", str(Path(__file__).parents[2])
    model, out, log = tmp_path / "model", tmp_path / "out", tmp_path / "log"
    create(CreateFlags(str(example / "configs" / "tiny_n1c8.json"), str(example / "texts"), str(model), weights=False))
    assert not list(model.glob("*.safetensors*"))
    (tmp_path / "train.json").write_text('{"src": "one two", "tgt": "three four"}\n' * 8)
    flags = {"model_name_or_path": model, "dataset_name_or_path": tmp_path, "output_dir": out, "max_length": 32}
    flags |= {"tensor_parallel_degree": 2, "max_steps": 2, "bf16": True, "save_steps": 1, "zero_padding": True}
    script = (str(example / "lora.py"), *(f"--{name}={value}" for name, value in flags.items()))
    ran = rehearse(LAUNCH, "--devices", "0,1", "--log_dir", str(log), *script, devices=2, PYTHONPATH=root)
    assert ran.returncode == 0, ran.stderr + (log / "workerlog.0").read_text()[-2000:]
    lines = read_log(out / "log.jsonl")
    assert [line["step"] for line in lines] == [1, 2] and all(line["note"] == NOTE for line in lines)
    assert NOTE.capitalize() in (out / "report.html").read_text()
    assert NOTE in (log / "workerlog.0").read_text()
    assert not [path for path in out.rglob("*") if "safetensors" in path.name or path.name.startswith("checkpoint")]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["npu", "--rehearse", "true"], "--devices must be given with --rehearse, got none. Write --devices 8"),
        (["gpu", "--rehearse", "--devices", "8", "true"], "no device type is called 'gpu'"),
        (["npu", "--report", "x.json", "true"], "--report must come with --rehearse"),
        (["npu", "--uneven", "true"], "--uneven must come with --rehearse"),
        (
            ["npu", "--rehearse", "--devices", "2", "--report", "/nowhere/x.json", "true"],
            "--report must be a file in a folder that is there, got '/nowhere/x.json'",
        ),
    ],
)
def test_wrong_options_are_explained(arguments, message, capfd):
    assert main(["emulate", *arguments]) == 2
    assert message in capfd.readouterr().err


def test_a_command_that_uses_no_device_is_told_so():
    ran = rehearse("-c", "print('done')", options=("--memory", "910B-32GB"))
    assert ran.returncode == 1 and ran.stdout == "done\n"
    assert "no process used an emulated device" in ran.stderr and "1 device of 29.8 GiB" in ran.stderr

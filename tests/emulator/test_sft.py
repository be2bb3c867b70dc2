"""The Llama example's fine-tuning on the emulated npu, unchanged, against the same steps in float64."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from examples.llama2_13b.create import CreateFlags, create
from tests.emulator import llama_float64
from tests.emulator.emulated import run
from tests.emulator.sft_losses import flags_of
from tests.hanging import HANGING
from tests.launch import LAUNCH

EXAMPLE = Path(__file__).parents[2] / "examples" / "llama2_13b"
# fused_rope takes heads of 64.
SMALL = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
# The vendor's products fused with collectives take inner sizes from 256, also of a shard.
WIDE = SMALL | {"hidden_size": 512, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 2}
WIDE |= {"vocab_size": 511}  # of which the first of two ranks has one more
LOSSES = "tests.emulator.sft_losses"
ATTENTION_IN_FLOAT32 = "fallback: npu: q.dtype must be bfloat16 or float16, got float32"


def created(folder, sizes):
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads((EXAMPLE / "configs" / "demo.json").read_text()) | sizes))
    create(CreateFlags(str(config), str(EXAMPLE / "texts"), str(folder / "model")))
    (folder / "data").mkdir()
    for split, count in (("train", 200), ("dev", 4)):  # each process reads all
        lines = (EXAMPLE / "texts" / f"{split}.json").read_text(encoding="utf-8").splitlines()[:count]
        (folder / "data" / f"{split}.json").write_text("\n".join(lines), encoding="utf-8")
    return str(folder / "model")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return created(tmp_path_factory.mktemp("sft"), SMALL)


def trained(model, output, dtype, backends, device=None, rows=1):
    command = (sys.executable, "-m", LOSSES, model, str(output), dtype, backends, str(rows))
    result = (
        run(device, *command) if device else subprocess.run(command, capture_output=True, text=True, timeout=HANGING)
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return json.loads(result.stdout.splitlines()[-1])


def trained_on(processes, model, folder, dtype, backends, degree=1, sharding=""):
    """What each process printed."""
    devices = ",".join(map(str, range(processes)))
    launch = (LAUNCH, "--devices", devices, "--log_dir", str(folder / "log"))
    script = (str(Path(__file__).with_name("sft_losses.py")), model, str(folder / "out"), dtype, backends, "1")
    script += (str(degree), sharding)
    options = ("--devices", str(processes), "--timeout", "120")
    root = str(Path(__file__).parents[2])
    result = run("npu", sys.executable, *launch, *script, options=options, PYTHONPATH=root)
    logs = [path.read_text() for path in sorted((folder / "log").glob("workerlog.*"))]
    assert result.returncode == 0, "".join(log[-3000:] for log in logs)
    return [json.loads(line) for log in logs for line in log.splitlines() if line.startswith('{"device"')]


def losses_of(printed):
    """The first process alone knows them."""
    (losses,) = [each["losses"] for each in printed if each["losses"]]
    return losses


def reasons(run, op):
    return {(backend, reason) for name, backend, reason in run["ledger"] if name == op}


def exact_run(model, watched):
    """Losses and gradients of float64, by the example's names, of the steps that a run was given."""
    recorded = np.load(f"{watched}.npz")
    arrays = ("input_ids", "labels", "position_ids", "startend_row_indices")
    batches = [[recorded[f"{step}.{name}"] for name in arrays] for step in range(3)]
    losses, gradients = llama_float64.train(model, batches, recorded["rates"], flags_of(model, "", "float32", 1))
    return losses, llama_float64.named_as_the_example(gradients, SMALL["num_hidden_layers"])


def gradients_of(output):
    recorded = np.load(f"{output}.npz")
    return {name.removeprefix("gradient."): recorded[name] for name in recorded if name.startswith("gradient.")}


def require_twice_the_composition(exact, ours, composed, dtype):
    """Rule 7: at most twice what the composition of the same dtype is off, and half an epsilon (float32: two) of the
    largest element. Each of the three is (losses, gradients)."""
    epsilons = {"float32": 2 * 2.0**-23, "bfloat16": 0.5 * 2.0**-7}[dtype]
    assert ours[1].keys() == composed[1].keys() == exact[1].keys()
    quantities = {name: (exact[1][name], ours[1][name], composed[1][name]) for name in exact[1]}
    # A loss is a float32 in every dtype.
    quantities["losses"] = tuple(map(np.asarray, (exact[0], ours[0], composed[0])))
    for name, (wanted, got, beside) in quantities.items():
        assert np.abs(wanted).max() > 0, name
        rounding = 2 * 2.0**-23 if name == "losses" else epsilons
        allowed = 2 * np.abs(beside - wanted).max() + rounding * np.abs(wanted).max()
        error = np.abs(got - wanted).max()
        assert error <= allowed, f"{name}: off by {error:.3g}, allowed {allowed:.3g} of {np.abs(wanted).max():.3g}"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fine_tuning_on_the_emulated_npu_agrees_with_float64(model, tmp_path, dtype):
    npu = trained(model, tmp_path / "npu", dtype, "npu,eager", device="npu")
    composed = trained(model, tmp_path / "composed", dtype, "eager")["losses"]
    assert npu["device"] == "npu:0"
    assert reasons(npu, "fusion_rms_norm") == {("npu", "chosen")} and reasons(npu, "fusion_rope") == {("npu", "chosen")}
    wanted = ("npu", "chosen") if dtype == "bfloat16" else ("eager", ATTENTION_IN_FLOAT32)
    assert reasons(npu, "flash_attention") == {wanted}
    for op in ("swiglu", "fused_linear", "fused_linear_cross_entropy"):
        assert reasons(npu, op) == {("eager", f"not offered: npu: npu does not have {op}")}
    require_twice_the_composition(
        exact_run(model, tmp_path / "npu"),
        (npu["losses"], gradients_of(tmp_path / "npu")),
        (composed, gradients_of(tmp_path / "composed")),
        dtype,
    )


def test_eight_processes_of_data_parallelism_make_the_steps_of_float64(model, tmp_path):
    printed = trained_on(8, model, tmp_path, "bfloat16", "npu,eager")
    composed = trained(model, tmp_path / "composed", "bfloat16", "eager", rows=8)["losses"]
    assert sorted(each["device"] for each in printed) == [f"npu:{number}" for number in range(8)]
    for each in printed:
        for op in ("fusion_rms_norm", "fusion_rope", "flash_attention"):
            assert reasons(each, op) == {("npu", "chosen")}
    losses = losses_of(printed)
    require_twice_the_composition(
        exact_run(model, tmp_path / "composed"),
        (losses, gradients_of(tmp_path / "out")),
        (composed, gradients_of(tmp_path / "composed")),
        "bfloat16",
    )


@pytest.mark.parametrize("sharding", ["", "stage1", "stage3"], ids=["tensor2", "sharding2-tensor2", "stage3-tensor2"])
def test_tensor_parallelism_makes_the_steps_of_float64(tmp_path, sharding):
    model = created(tmp_path, WIDE)
    copies = 2 if sharding else 1
    printed = trained_on(2 * copies, model, tmp_path, "bfloat16", "npu,eager", degree=2, sharding=sharding)
    composed = trained(model, tmp_path / "composed", "bfloat16", "eager", rows=copies)["losses"]
    for each in printed:
        for op in ("all_gather_matmul", "matmul_reduce_scatter", "fusion_rms_norm", "flash_attention"):
            assert ("npu", "chosen") in reasons(each, op), (op, reasons(each, op))
        not_offered = "not offered: npu: npu does not have fused_linear_cross_entropy"
        assert reasons(each, "fused_linear_cross_entropy") == {("eager", not_offered)}
    losses = losses_of(printed)
    (tmp_path / "divided").mkdir()
    divided = losses_of(trained_on(2 * copies, model, tmp_path / "divided", "bfloat16", "eager", 2, sharding))
    exact, _ = exact_run(model, tmp_path / "composed")
    # Three losses say little of how far rounding goes: the composition's are taken whole and divided.
    furthest = max((composed, divided), key=lambda run: np.abs(np.subtract(run, exact)).max())
    require_twice_the_composition((exact, {}), (losses, {}), (furthest, {}), "bfloat16")

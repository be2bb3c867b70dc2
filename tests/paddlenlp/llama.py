"""The vendors' contracts held against PaddleNLP, which was written for the hardware: its Llama on the emulated npu.

`make test-paddlenlp` sets up an environment of its own and runs this file; `make test` does not.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.emulator.emulated import run
from tests.hanging import HANGING

ROOT = Path(__file__).parents[2]
PYTHON = str(ROOT / ".venv-paddlenlp" / "bin" / "python")
SCRIPT = str(Path(__file__).with_name("train.py"))


def trained(folder, kind, dtype, device=None):
    """What a run printed, and its first step's gradients."""
    gradients = folder / f"{kind}-{dtype}-{device}.npz"
    command = (PYTHON, SCRIPT, kind, dtype, str(gradients))
    result = (
        run(device, *command) if device else subprocess.run(command, capture_output=True, text=True, timeout=HANGING)
    )
    assert result.returncode == 0, result.stdout[-1000:] + result.stderr[-4000:]
    return json.loads(result.stdout.splitlines()[-1]) | {"gradients": dict(np.load(gradients))}


@pytest.fixture(scope="module")
def on_the_cpu(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("cpu"), "plain", "float32")


def test_plain_float32_equals_the_cpu(on_the_cpu, tmp_path):
    run_on_npu = trained(tmp_path, "plain", "float32", device="npu")
    assert run_on_npu["device"] == "npu:0" and run_on_npu["ops"] == {}
    # The same kernels in the same order: losses of 6.4, of which float32 has steps of 5e-7.
    np.testing.assert_allclose(run_on_npu["losses"], on_the_cpu["losses"], atol=2e-6)
    assert run_on_npu["gradients"].keys() == on_the_cpu["gradients"].keys()
    for name, wanted in on_the_cpu["gradients"].items():
        assert np.abs(run_on_npu["gradients"][name] - wanted).max() <= 1e-5 * np.abs(wanted).max(), name


def test_the_vendors_fused_ops_in_bfloat16_are_as_near_as_bfloat16_is(on_the_cpu, tmp_path):
    fused, plain = (trained(tmp_path, kind, "bfloat16", device="npu") for kind in ("fused", "plain"))
    # 4 steps of 2 layers: two norms a layer and a last one; q and k are rotated apart; one attention a layer.
    assert fused["ops"] == {"rms_norm_npu": 20, "fused_rope": 16, "flash_attention_npu": 8}
    error, allowed = (np.abs(np.subtract(each["losses"], on_the_cpu["losses"])).max() for each in (fused, plain))
    assert error <= 2 * allowed, (fused["losses"], plain["losses"], on_the_cpu["losses"])
    for name, wanted in on_the_cpu["gradients"].items():
        error, allowed = (np.abs(each["gradients"][name] - wanted).max() for each in (fused, plain))
        assert error <= 2 * allowed + 0.5 * 2.0**-7 * np.abs(wanted).max(), f"{name}: {error:.3g}, plain {allowed:.3g}"

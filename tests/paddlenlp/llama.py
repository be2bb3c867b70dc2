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

ROOT = Path(__file__).parents[2]
PYTHON = str(ROOT / ".venv-paddlenlp" / "bin" / "python")
SCRIPT = str(Path(__file__).with_name("train.py"))


def trained(kind, dtype, device=None):
    command = (PYTHON, SCRIPT, kind, dtype)
    result = run(device, *command) if device else subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout[-1000:] + result.stderr[-4000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def on_the_cpu():
    return trained("plain", "float32")["losses"]


def test_plain_float32_equals_the_cpu(on_the_cpu):
    run_on_npu = trained("plain", "float32", device="npu")
    assert run_on_npu["device"] == "npu:0" and run_on_npu["ops"] == {}
    # The same kernels in the same order: losses of 6.4, of which float32 has steps of 5e-7.
    np.testing.assert_allclose(run_on_npu["losses"], on_the_cpu, atol=2e-6)


def test_the_vendors_fused_ops_in_bfloat16_are_as_near_as_bfloat16_is(on_the_cpu):
    fused, plain = (trained(kind, "bfloat16", device="npu") for kind in ("fused", "plain"))
    # 4 steps of 2 layers: two norms a layer and a last one; q and k are rotated apart; one attention a layer.
    assert fused["ops"] == {"rms_norm_npu": 20, "fused_rope": 16, "flash_attention_npu": 8}
    error, allowed = (np.abs(np.subtract(each["losses"], on_the_cpu)).max() for each in (fused, plain))
    assert error <= 2 * allowed, (fused, plain, on_the_cpu)

"""What our imports and first calls write to the screen: nothing, also where each warning is an error."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.hanging import HANGING

EAGER = """
import fusionkit as fk
import paddle
x = paddle.ones([2, 8])
x.stop_gradient = False
fk.fusion_rms_norm(x, paddle.ones([8])).sum().backward()
assert "cpu" in str(fk.ledger())
"""
LAYERS = """
import fusionkit.nn
import paddle
fusionkit.nn.RMSNorm(8)(paddle.ones([2, 8]))
"""
PROGRAM = """
import sys
import fusionkit as fk
from fusionkit import passes
import paddle
class Gate(paddle.nn.Layer):
    def forward(self, x):
        return fk.swiglu(x, x)
passes.export(Gate(), sys.argv[1], [paddle.static.InputSpec([2, 8], "float32")])
passes.create_predictor(sys.argv[1]).run([paddle.ones([2, 8])])
"""
DEVICE = """
from fusionkit.frameworks import custom_device
custom_device.register_ops()
"""


def stderr_of(*arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    environment["OMP_NUM_THREADS"] = "1"  # Paddle warns of more, which a caller of these tests may have set
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=HANGING
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("code", [EAGER, LAYERS, DEVICE], ids=["eager", "layers", "device"])
def test_a_first_call_writes_nothing(code):
    assert stderr_of("-W", "error::UserWarning", "-c", code) == ""


def test_an_exported_program_brings_no_warning_of_ccache(tmp_path):
    script = tmp_path / "script.py"  # to_static reads the source
    script.write_text(PROGRAM)
    assert "ccache" not in stderr_of(str(script), str(tmp_path / "program"))  # Paddle logs to stderr as well


def test_doctor_brings_no_warning_of_ccache():
    assert "ccache" not in stderr_of("-c", "import fusionkit.cli; fusionkit.cli.main(['doctor'])")


def test_other_warnings_and_other_users_of_the_word_stay():
    code = "import fusionkit, warnings; warnings.warn('No ccache found, says a user')"
    assert "says a user" in stderr_of("-c", code)

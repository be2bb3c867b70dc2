"""Importing fusionkit is cheap: no framework, no device, under 100 ms."""

from __future__ import annotations

import subprocess
import sys

FRAMEWORKS = ("paddle", "torch", "stevedore", "fusionkit_backends")


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_import_brings_no_framework_and_no_plugin():
    code = f"import fusionkit, sys; print(*[n for n in {FRAMEWORKS} if n in sys.modules])"
    assert run(code) == []


def test_import_takes_under_100_ms():
    """Processor time, the best of five: other work on the machine can only add."""
    code = "import time; t = time.process_time(); import fusionkit; print(time.process_time() - t)"
    assert min(float(run(code)[0]) for _ in range(5)) < 0.1


def test_numpy_calls_import_no_framework():
    code = (
        "import fusionkit as fk, numpy as np, sys; fk.fusion_rms_norm(np.ones((2, 8), 'f'), np.ones(8, 'f'));"
        "print(*[n for n in ('paddle', 'torch') if n in sys.modules])"
    )
    assert run(code) == []

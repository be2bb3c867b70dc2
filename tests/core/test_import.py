"""Importing fusionkit is cheap: no framework, no device, little else."""

from __future__ import annotations

import subprocess
import sys

FRAMEWORKS = ("paddle", "torch", "stevedore", "fusionkit_backends")


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_import_brings_no_framework_and_no_plugin():
    code = f"import fusionkit, sys; print(*[n for n in {FRAMEWORKS} if n in sys.modules])"
    assert run(code) == []


def test_import_brings_few_modules_of_others():
    """What it costs is `fusionkit bench dispatch`'s to measure: here, two dozen of the standard library."""
    new = run("import sys; had = set(sys.modules); import fusionkit; print(*sorted(set(sys.modules) - had))")
    others = {name.partition(".")[0] for name in new} - {"fusionkit"}
    assert others <= sys.stdlib_module_names
    assert len({name.lstrip("_") for name in others}) <= 24, sorted(others)


def test_numpy_calls_import_no_framework():
    code = (
        "import fusionkit as fk, numpy as np, sys; fk.fusion_rms_norm(np.ones((2, 8), 'f'), np.ones(8, 'f'));"
        "print(*[n for n in ('paddle', 'torch') if n in sys.modules])"
    )
    assert run(code) == []

"""One interpreting process for each of pytest's workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hanging import HANGING

ROOT = Path(__file__).resolve().parents[2]
# The interpreter multiplies with NumPy, whose OpenBLAS adds in another order on each kind of processor. In float32
# attention's bound is one of rounding, and the order alone moves dk of S16 from 0.26 of it to 1.03 (as on Haswell).
ONE_ORDER = {"OPENBLAS_CORETYPE": "Nehalem"}


class Interpreter:
    """Starts the process at the first request, and again after one that ended it."""

    def __init__(self):
        self.process = None

    def __call__(self, **request):
        """Raises AssertionError with the process's own traceback."""
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "tests.gpu.interpreter"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                env=os.environ | ONE_ORDER | {"TRITON_INTERPRET": "1"},
            )
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"the interpreting process ended with {self.process.wait()}"
        if error := json.loads(answer)["error"]:
            raise AssertionError(error)

    def close(self):
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait(timeout=HANGING)
            self.process.stdout.close()


@pytest.fixture(scope="session")
def interpreter():
    made = Interpreter()
    yield made
    made.close()

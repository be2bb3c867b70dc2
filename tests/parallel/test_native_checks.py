"""The checks of tests/native/communicator: ranks as threads, and transports that hold bytes back at a chosen moment."""

from __future__ import annotations

import subprocess

from native import build
from tests import communicator_program
from tests.hanging import HANGING


def test_the_stand_alone_checks_of_the_communicator_pass():
    program = communicator_program.build_program(build.without_openmp())
    done = subprocess.run([program], capture_output=True, text=True, timeout=HANGING)
    assert done.returncode == 0, done.stderr
    assert "communicator_tests: 0 checks" not in done.stdout

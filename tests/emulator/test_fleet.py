"""fleet's own layers and optimizers on the emulated npu, a process for each device, beside one process on the CPU."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.emulator.emulated import run
from tests.emulator.fleet_training import AXES

TRAINING = str(Path(__file__).with_name("fleet_training.py"))


@pytest.fixture(scope="module")
def alone():
    result = subprocess.run((sys.executable, TRAINING, "one"), capture_output=True, text=True, timeout=300, check=True)
    return json.loads(result.stdout.splitlines()[-1])["losses"]


@pytest.mark.parametrize("axes", AXES)
def test_a_parallel_run_equals_one_process(axes, alone, tmp_path):
    processes = math.prod(AXES[axes][0])
    devices = ",".join(map(str, range(processes)))
    launch = ("-m", "paddle.distributed.launch", "--devices", devices, "--log_dir", str(tmp_path))
    options = ("--devices", str(processes), "--timeout", "120")
    # As the vendors' own scripts: fleet's partial sends and scatters take no strided views.
    result = run("npu", sys.executable, *launch, TRAINING, axes, options=options, FLAGS_use_stride_kernel="0")
    logs = {path.name: path.read_text() for path in sorted(tmp_path.glob("workerlog.*"))}
    assert result.returncode == 0, result.stdout[-1000:] + "".join(log[-3000:] for log in logs.values())
    printed = [json.loads(line) for log in logs.values() for line in log.splitlines() if line.startswith('{"share"')]
    assert len(printed) == processes
    # Each share of the batch has its own loss; their mean is the batch's. Losses of 4.2: 5e-6 is ten float32 epsilons.
    shares = {each["share"]: each["losses"] for each in printed}
    assert all(each["losses"] == shares[each["share"]] for each in printed)
    np.testing.assert_allclose(np.mean(list(shares.values()), axis=0), alone, atol=5e-6)

"""fleet's own layers and optimizers on the emulated npu, a process for each device, beside one process on the CPU."""

from __future__ import annotations

import functools
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.emulator.emulated import run
from tests.emulator.fleet_training import AXES
from tests.hanging import HANGING
from tests.launch import LAUNCH

pytestmark = pytest.mark.xdist_group("fleet")
TRAINING = str(Path(__file__).with_name("fleet_training.py"))


@pytest.fixture(scope="module")
def alone():
    result = subprocess.run(
        (sys.executable, TRAINING, "one"), capture_output=True, text=True, timeout=HANGING, check=True
    )
    return json.loads(result.stdout.splitlines()[-1])["losses"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(what the ranks printed, what to show of a failure) of all ways that take a number of processes: one run."""

    @functools.cache
    def trained_by(processes):
        ways = [axes for axes, (degrees, _) in AXES.items() if math.prod(degrees) == processes]
        folder = tmp_path_factory.mktemp("fleet")
        devices = ",".join(map(str, range(processes)))
        launch = (LAUNCH, "--devices", devices, "--log_dir", str(folder))
        options = ("--devices", str(processes), "--timeout", "120")
        # As the vendors' own scripts: fleet's partial sends and scatters take no strided views.
        result = run("npu", sys.executable, *launch, TRAINING, *ways, options=options, FLAGS_use_stride_kernel="0")
        logs = [path.read_text() for path in sorted(folder.glob("workerlog.*"))]
        printed = [json.loads(line) for log in logs for line in log.splitlines() if line.startswith('{"axes"')]
        return printed, f"status {result.returncode}: {result.stdout[-1000:]}" + "".join(log[-3000:] for log in logs)

    return trained_by


@pytest.mark.parametrize("axes", AXES)
def test_a_parallel_run_equals_one_process(axes, alone, trained):
    processes = math.prod(AXES[axes][0])
    everything, shown = trained(processes)
    printed = [each for each in everything if each["axes"] == axes]
    assert len(printed) == processes and shown.startswith("status 0:"), shown
    # Each share of the batch has its own loss; their mean is the batch's. Losses of 4.2: 5e-6 is ten float32 epsilons.
    shares = {each["share"]: each["losses"] for each in printed}
    assert all(each["losses"] == shares[each["share"]] for each in printed)
    np.testing.assert_allclose(np.mean(list(shares.values()), axis=0), alone, atol=5e-6)

"""Steps on ranks of the emulated npu, each with what the device accounted for and what was predicted."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from tests.emulator.emulated import run
from tests.launch import LAUNCH

SCRIPT = Path(__file__).with_name("slice_of_ranks.py")
EXACT = ("parameters", "gradients", "optimizer")


def steps_of(sizes, degrees, choices, log, timeout=900, options=()):
    """What each rank printed, a list for each; see `slice_of_ranks.py` for the arguments."""
    count = int(np.prod([degree for name, degree in degrees.items() if name.endswith("parallel_degree")]))
    devices = ",".join(map(str, range(count)))
    case = json.dumps({"sizes": sizes, "degrees": degrees, "runs": choices})
    launch = [LAUNCH, "--devices", devices, "--log_dir", str(log), str(SCRIPT), case]
    options, root = ("--devices", str(count), "--timeout", "280", *options), str(Path(__file__).parents[2])
    given_back = {"FLAGS_free_idle_chunk": "1"}  # else Paddle's pool keeps what is freed, and the host has less
    result = run("npu", sys.executable, *launch, options=options, timeout=timeout, PYTHONPATH=root, **given_back)
    logs = [path.read_text() for path in sorted(log.glob("workerlog.*"))]
    assert result.returncode == 0, "".join(text[-3000:] for text in logs)
    return [[json.loads(line) for line in text.splitlines() if line.startswith('{"rank"')] for text in logs]


def require_predicted(found, choices):
    """Of one rank: exactly what stays, and the peak within 5%."""
    assert len(found) == len(choices)
    for one in found:
        measured, predicted = one["measured"], one["predicted"]
        print(one["rank"], one["choice"], measured, predicted, predicted["peak"] / measured["peak"] - 1)
        assert measured["device"] == f"npu:{one['rank']}"
        assert {name: measured[name] for name in EXACT} == {name: predicted[name] for name in EXACT}
        stays = predicted["parameters"] + predicted["optimizer"]
        assert stays <= measured["held"] < 1.01 * stays + 1e6  # cosines, sines, and what is rounded up
        assert abs(predicted["peak"] / measured["peak"] - 1) < 0.05

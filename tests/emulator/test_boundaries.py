"""Both sides of every limit that npu and gcu declare, on the emulated device, where boundary_calls.py runs."""

from __future__ import annotations

import pytest

from fusionkit import registry
from fusionkit.ops import load_spec
from tests.boundaries import edges
from tests.emulator.emulated import passed

BACKENDS = {backend.name: backend for backend in registry.loaded()}


@pytest.mark.parametrize("device", ["npu", "gcu"])
def test_accepted_means_parity_and_refused_means_that_the_device_refuses(device):
    count, end = passed(device, "tests/emulator/boundary_calls.py")
    alone = [edge for edge in edges(BACKENDS[device]) if not load_spec(edge.op).collective]
    assert count == len(alone) + 1 and "skipped" not in end

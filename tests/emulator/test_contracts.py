"""npu and gcu on their emulated devices: every case that they take against float64, and the contracts themselves."""

from __future__ import annotations

import re

import pytest

from tests.emulator.emulated import passed

PARITY = "tests/test_parity.py"
NPU, NPU_INFERENCE, GCU = (f"tests/emulator/{name}_contract.py" for name in ("npu", "npu_inference", "gcu"))


@pytest.mark.parametrize(
    "device, kernels, num_checks, contracts, num_promises, arguments",
    [
        ("npu", "-npu-", 284, (NPU, NPU_INFERENCE), 27, "13"),
        ("npu", "flash_attention-npu-", 176, (NPU,), 20, "10"),
        ("gcu", "-gcu-", 480, (GCU,), 10, "13"),
    ],
    ids=["npu", "npu-10-arguments", "gcu"],
)
def test_kernels_agree_with_float64_and_keep_their_contract(
    device, kernels, num_checks, contracts, num_promises, arguments, parity_of
):
    """tests/test_parity.py there: the ledger shows the backend, forward and gradients, eager and static graphs. And
    what the vendor's ops promise. Llama's sizes are left out: the reference takes seconds for each."""
    setting = {"FUSIONKIT_EMULATOR_FLASH_ATTENTION_ARGUMENTS": arguments}
    chosen = ("-k", f"{kernels} or contract", "-m", "not llama")
    num_passed, end = passed(device, PARITY, *contracts, *chosen, **setting)
    counts = {route: int(count) for route, count in re.findall(rf"^{device} through (\w+): (\d+)$", end, re.M)}
    assert set(counts) == {"paddle", "static"} and sum(counts.values()) >= num_checks
    assert num_passed - sum(counts.values()) >= num_promises
    for route, count in counts.items():
        for _ in range(count):
            parity_of(f"{device} (emulated)", route)

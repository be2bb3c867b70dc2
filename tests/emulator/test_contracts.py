"""npu and gcu on their emulated devices: every case that they take against float64, and the contracts themselves."""

from __future__ import annotations

import re

import pytest

from tests.emulator.emulated import passed

NO_LLAMA_SIZES = "not 1024 and not 5120"  # float64 takes 20 s for one of them


@pytest.mark.parametrize(
    "device, kernels, at_least, arguments",
    [("npu", "-npu-", 284, "13"), ("npu", "flash_attention-npu-", 176, "10"), ("gcu", "-gcu-", 480, "13")],
    ids=["npu", "npu-10-arguments", "gcu"],
)
def test_kernels_agree_with_float64_on_the_emulated_device(device, kernels, at_least, arguments, parity_of):
    """tests/test_parity.py there: the ledger shows the backend, forward and gradients, eager and static graphs."""
    setting = {"FUSIONKIT_EMULATOR_FLASH_ATTENTION_ARGUMENTS": arguments}
    _, end = passed(device, "tests/test_parity.py", "-k", f"{kernels} and {NO_LLAMA_SIZES}", **setting)
    counts = {route: int(count) for route, count in re.findall(rf"^{device} through (\w+): (\d+)$", end, re.M)}
    assert set(counts) == {"paddle", "static"} and sum(counts.values()) >= at_least
    for route, count in counts.items():
        for _ in range(count):
            parity_of(f"{device} (emulated)", route)


@pytest.mark.parametrize("arguments", ["13", "10"])
def test_npu_ops_keep_their_contract(arguments):
    setting = {"FUSIONKIT_EMULATOR_FLASH_ATTENTION_ARGUMENTS": arguments}
    count, _ = passed("npu", "tests/emulator/npu_contract.py", **setting)
    assert count >= 20


def test_npu_ops_for_inference_keep_their_contract():
    count, _ = passed("npu", "tests/emulator/npu_inference_contract.py")
    assert count == 7


def test_gcu_ops_keep_their_contract():
    count, _ = passed("gcu", "tests/emulator/gcu_contract.py")
    assert count >= 10

"""What Ascend cards need, told without loading their libraries. Without card and plugin there is nothing to mend."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from fusionkit import pci
from fusionkit.backend import Check
from fusionkit.frameworks import custom_device

HUAWEI, ASCEND_910B = 0x19E5, 0xD802
OPS = (
    "rms_norm_npu",
    "fused_rope",
    "flash_attention_npu",
    "fused_allgather_mm",
    "fused_mm_reduce_scatter",
    "fused_mm_allreduce",
)
PLUGIN_FIX = "pip install paddle-custom-npu (from the vendor's index), or set CUSTOM_DEVICE_ROOT to the plugin's folder"
CANN_FIX = "install CANN 8.0.RC2 or newer, then: source /usr/local/Ascend/ascend-toolkit/set_env.sh"
DRIVER_FIX = "install driver 23.0.3 or newer from hiascend.com"


def stand_in() -> str | None:
    """`fusionkit emulate npu` says so to its command."""
    return "emulated" if os.environ.get("FUSIONKIT_EMULATOR_DEVICE") == "npu" else None


def checks() -> list[Check]:
    cards = pci.cards(HUAWEI, ASCEND_910B)
    if not cards and (absent := custom_device.missing_device("npu")):
        return [Check("Ascend card", True, f"none, so nothing is to be mended; {absent}")]
    host = [_tool(), _driver(), _cann()] if cards else []
    return [_card(cards), *host, *_plugin()]


def _card(cards: list[str]) -> Check:
    """`lspci | grep d802` lists the same."""
    if cards:
        chosen = os.environ.get("ASCEND_RT_VISIBLE_DEVICES", "all")
        return Check("Ascend card", True, f"{len(cards)} of type 910B; ASCEND_RT_VISIBLE_DEVICES: {chosen}")
    return Check("Ascend card", True, "none: a device that Paddle shows here is emulated")


def _tool() -> Check:
    found = shutil.which("npu-smi")
    return Check("npu-smi", found is not None, found or "not on PATH", DRIVER_FIX)


def _driver() -> Check:
    return _versioned("driver", Path("/usr/local/Ascend/driver/version.info"), r"Version=(\S+)", "23.0.3", DRIVER_FIX)


def _cann() -> Check:
    """Below 8.0.RC2 the operators that overlap products with collectives end in a bus error."""
    toolkit = Path(os.environ.get("ASCEND_TOOLKIT_HOME", "/usr/local/Ascend/ascend-toolkit/latest"))
    info = next(toolkit.glob("*-linux/ascend_toolkit_install.info"), toolkit / "ascend_toolkit_install.info")
    return _versioned("CANN", info, r"version=(\S+)", "8.0.RC2", CANN_FIX)


def outdated_cann() -> str | None:
    """Why the operators that overlap products with collectives must not run; None where no CANN is installed, as on an
    emulated card."""
    found = _cann()
    return (
        None if found.passed or found.found.startswith("no version") else f"CANN {found.found} is too old: {CANN_FIX}"
    )


def _versioned(name: str, file: Path, pattern: str, minimum: str, fix: str) -> Check:
    match = re.search(pattern, file.read_text()) if file.exists() else None
    if match is None:
        return Check(name, False, f"no version in {file}", fix)
    return Check(name, _numbers(match[1]) >= _numbers(minimum), match[1], fix)


def _numbers(version: str) -> tuple[int, ...]:
    """For comparing: 8.0.RC2 comes before 8.0.0."""
    parts = re.findall(r"(rc)?(\d+)", version, re.IGNORECASE)
    return tuple(int(number) - 1000 * bool(candidate) for candidate, number in parts)


def _plugin() -> list[Check]:
    missing = custom_device.missing("npu")
    found = Check("plugin", missing is None, missing or f"in {custom_device.plugin_folder()}", PLUGIN_FIX)
    if missing is not None:
        return [found]
    absent = [op for op in OPS if custom_device.argument_counts(op) is None]
    shown = f"not registered: {', '.join(absent)}" if absent else f"registered: {', '.join(OPS)}"
    return [found, Check("custom ops", not absent, shown, PLUGIN_FIX)]

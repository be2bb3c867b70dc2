"""What Enflame cards need, told without loading their libraries. Without card and plugin there is nothing to mend."""

from __future__ import annotations

import os

from fusionkit import pci
from fusionkit.backend import Check
from fusionkit.frameworks import custom_device

ENFLAME = 0x1E36
OPS = ("rms_norm_gcu", "fused_add_rms_norm_op", "fused_rotary_embedding_gcu", "fused_sdp_flash_attention_gcu")
PLUGIN_FIX = "pip install paddle-custom-gcu (from the vendor's index), or set CUSTOM_DEVICE_ROOT to the plugin's folder"
# What the vendor asks for; None: any value.
ENVIRONMENT = {
    "PADDLE_RUN_ASYNC": None,
    "FLAGS_use_stride_kernel": ("false", "0"),
    "CUSTOM_DEVICE_BLACK_LIST": ("softmax_with_cross_entropy",),
}


def stand_in() -> str | None:
    """`fusionkit emulate gcu` says so to its command."""
    return "emulated" if os.environ.get("FUSIONKIT_EMULATOR_DEVICE") == "gcu" else None


def checks() -> list[Check]:
    cards = pci.cards(ENFLAME)
    if not cards and (absent := custom_device.missing_device("gcu")):
        return [Check("Enflame card", True, f"none, so nothing is to be mended; {absent}")]
    found = f"{len(cards)}" if cards else "none: a device that Paddle shows here is emulated"
    return [Check("Enflame card", True, found), *map(_variable, ENVIRONMENT), *_plugin()]


def _variable(name: str) -> Check:
    wanted, got = ENVIRONMENT[name], os.environ.get(name)
    passed = got is not None and (wanted is None or got.lower() in wanted)
    return Check(name, passed, "not set" if got is None else got, f"export {name}={wanted[0] if wanted else 'true'}")


def _plugin() -> list[Check]:
    missing = custom_device.missing("gcu")
    found = Check("plugin", missing is None, missing or f"in {custom_device.plugin_folder()}", PLUGIN_FIX)
    if missing is not None:
        return [found]
    absent = [op for op in OPS if custom_device.argument_counts(op) is None]
    shown = f"not registered: {', '.join(absent)}" if absent else f"registered: {', '.join(OPS)}"
    return [found, Check("custom ops", not absent, shown, PLUGIN_FIX)]

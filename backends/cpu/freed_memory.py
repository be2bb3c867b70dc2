"""Whether a call's large results serve the next call when they are freed: csrc/freed_blocks.h.

Paddle's CPU tensors begin at multiples of 4 KiB. To glibc such a block is 4 KiB smaller when it is freed than when it
was asked for, so its moving threshold never reaches the largest size in use: each such result is fetched anew.
"""

from __future__ import annotations

from fusionkit import settings
from fusionkit.backend import Check

SETTING = "FUSIONKIT_CPU_REUSE_MEMORY"


def is_reused() -> bool:
    return settings.value(SETTING) != "0"


def check() -> Check:
    """For `fusionkit doctor`."""
    if is_reused():
        return Check(
            "freed memory", True, f"large results serve the next call ({SETTING}=0 returns them to the system)"
        )
    return Check("freed memory", True, f"large results go back to the system ({SETTING}=0)")

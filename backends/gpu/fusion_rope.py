"""fusion_rope by the function of Paddle's that its build for XPU has too."""

from __future__ import annotations

from fusionkit.adapters.rope import fusion_rope

__all__ = ["fusion_rope"]

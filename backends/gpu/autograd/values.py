"""Rules on values, which a device cannot be asked without waiting for it."""

from __future__ import annotations

from typing import Any

import torch

from fusionkit import settings
from fusionkit.errors import argument_error

SETTING = "FUSIONKIT_GPU_CHECK_VALUES"


def require_values(op: str, name: str, tensor: torch.Tensor, high: int, ignored: int | None = None) -> None:
    """Each value is in [0, high), or `ignored`. Read back from a card only if the setting is 1: it waits for the card.

    Without the check a wrong value makes NaN of the results that depend on it.
    """
    if tensor.device.type == "meta" or (tensor.is_cuda and settings.value(SETTING) != "1"):
        return
    outside = (tensor < 0) | (tensor >= high)
    if ignored is not None:
        outside &= tensor != ignored
    if bool(outside.any()):
        rule: Any = f"in [0, {high})" + ("" if ignored is None else f" or ignore_index ({ignored})")
        raise argument_error(op, name, rule, int(tensor[outside][0]))

"""Where a program runs, and which of the device's passes are left out: what `predict` and `serve` ask alike."""

from __future__ import annotations

import paddle

DEVICE = "as paddle.set_device takes it; Paddle's choice if not given"
WITHOUT_PASSES = "the device's passes to leave out, with commas between; all for every one"


def use_device(device: str | None, command: str) -> None:
    """Run on the device from here on.

    Raises:
        ValueError: Paddle has none of this name.
    """
    if device is None:
        return
    try:
        paddle.set_device(device)
    except ValueError as error:
        rule = "one that Paddle has here"
        raise ValueError(f"{command}: --device must be {rule}, got {device!r}; {error}") from None


def left_out(without_passes: str | None) -> list[str]:
    return [name for name in (without_passes or "").split(",") if name]

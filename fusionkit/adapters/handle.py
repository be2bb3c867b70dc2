"""The handle that `matmul_all_reduce(..., defer=True)` returns where nothing is deferred."""

from __future__ import annotations

from typing import Any


class Done:
    """The handle of a result that is there already, or queued on the device's stream."""

    def __init__(self, y: Any) -> None:
        self._y = y

    def wait(self) -> Any:
        return self._y

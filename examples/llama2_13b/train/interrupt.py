"""Ctrl-C, SIGTERM and SIGHUP end a run between two steps, when its work is saved."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from examples.llama2_13b.io.signals import SIGNALS


class Interrupt:
    """Inside the block a signal is only noted, however often it comes; a second Ctrl-C raises KeyboardInterrupt.

    Other signals come several times without anyone's haste: `paddle.distributed.launch` sends SIGTERM three times in
    0.6 s. A signal that was ignored before, as nohup does with SIGHUP, stays ignored.
    """

    def __init__(self) -> None:
        self.signal = 0  # the first
        self._is_held = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._handlers = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """While work is written no signal ends the process."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        again, self.signal = self.signal != 0, self.signal or number
        if again and number == signal.SIGINT and not self._is_held:
            raise KeyboardInterrupt

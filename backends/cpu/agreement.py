"""All ranks of a group tell each other what they call, before they compute: who differs is named on every rank."""

from __future__ import annotations

from types import TracebackType

import numpy as np

from fusionkit.parallel import Communicator, CommunicatorError, Work

TEXT_BYTES = 192


class Agreement:
    """`with Agreement(communicator, "op", "x [8, 4] float32, ..."):` around the messages of one call.

    The texts travel in front of the call's own messages and are compared when these have ended, or failed: nothing
    waits for them.

    Raises:
        CommunicatorError: another rank's text differs.
    """

    def __init__(self, communicator: Communicator, op: str, text: str) -> None:
        self._op, self._rank, self._world_size = op, communicator.rank, communicator.world_size
        own = np.zeros(TEXT_BYTES, np.uint8)
        told = np.frombuffer(f"{op} of {text}".encode()[:TEXT_BYTES], np.uint8)
        own[: told.size] = told
        self._work: Work = communicator.all_gather(own, sync_op=False)

    def __enter__(self) -> Agreement:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, CommunicatorError):
            return
        if error is not None and not self._work.is_completed():
            return
        try:
            texts = [bytes(row).rstrip(b"\0").decode(errors="replace") for row in self._work.wait()]
        except CommunicatorError:
            if error is not None:
                return
            raise
        other = next((rank for rank, text in enumerate(texts) if text != texts[self._rank]), None)
        if other is not None:
            raise CommunicatorError(
                f"{self._op}: all ranks must make the same call, got {texts[other]} on rank {other} and "
                f"{texts[self._rank]} on rank {self._rank}; world_size {self._world_size}. Compare what the two called"
            ) from error

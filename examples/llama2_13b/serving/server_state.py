"""What all requests of a server share, and whether it still takes any."""

from __future__ import annotations

import time
from dataclasses import dataclass

from examples.llama2_13b.serving.engine_thread import EngineThread
from examples.llama2_13b.serving.errors import RequestError
from examples.llama2_13b.serving.metrics import Metrics
from examples.llama2_13b.serving.served_model import ServedModel


@dataclass(frozen=True)
class Limits:
    """
    Args:
        max_body_bytes: of a request.
        request_seconds: from a request's place in the queue to the end of its answer.
        drain_seconds: that requests under way may go on after SIGTERM.
    """

    max_body_bytes: int = 4 * 2**20
    request_seconds: float = 600.0
    drain_seconds: float = 60.0


@dataclass
class ServerState:
    model: ServedModel
    engine: EngineThread
    metrics: Metrics
    limits: Limits
    api_key: str | None = None
    is_loopback: bool = True
    draining_since: float | None = None

    def require_open(self) -> None:
        """Raises: RequestError, while the server drains."""
        if self.draining_since is not None:
            left = max(1, round(self.limits.drain_seconds))
            raise RequestError(503, "the server is stopping", code="draining", headers={"retry-after": str(left)})

    def drain(self) -> None:
        """Take no more requests. Those under way go on."""
        self.draining_since = self.draining_since or time.monotonic()

    @property
    def is_drained(self) -> bool:
        """Nothing is under way any more, or the time for it is over."""
        if self.draining_since is None:
            return False
        is_late = time.monotonic() - self.draining_since > self.limits.drain_seconds
        return is_late or self.engine.num_under_way == 0

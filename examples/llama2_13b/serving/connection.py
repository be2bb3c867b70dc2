"""A connection with a client: how long it may be silent, how many there are, and when it is seen that one has left."""

from __future__ import annotations

import asyncio
import json
import time
from typing import cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from examples.llama2_13b.serving import limits
from examples.llama2_13b.serving.errors import RequestError


class Connection(H11Protocol):
    """uvicorn's, with limits that it does not have.

    - The head of a request must be whole within HEAD_SECONDS, from the connection's beginning or the head's first byte.
    - MAX_CONNECTIONS may be open. A further one takes the place of the one that has been idle for longest.
    - What a client writes while it waits for an answer is read. So its leaving behind that is seen, too.
    """

    _head_limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.idle_since = time.monotonic()
        super().connection_made(cast(asyncio.Transport, transport))
        if len(self.connections) > limits.MAX_CONNECTIONS and not self._make_room():
            return self._refuse()
        self._limit_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_has_come()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._head_limit is None and not self._is_answering:
            self._limit_head()
        super().data_received(data)
        if self._is_answering:
            self._head_has_come()
        if self.conn.their_state is h11.DONE and self._is_answering:
            self._read_on()

    def on_response_complete(self) -> None:
        self.idle_since = time.monotonic()
        super().on_response_complete()  # here a request that came meanwhile begins
        if self.conn.trailing_data[0] and not self._is_answering:
            self._limit_head()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _limit_head(self) -> None:
        self._head_has_come()
        self._head_limit = self.loop.call_later(limits.HEAD_SECONDS, self.transport.close)

    def _head_has_come(self) -> None:
        if self._head_limit is not None:
            self._head_limit.cancel()
            self._head_limit = None

    def _read_on(self) -> None:
        """uvicorn stops reading behind a request that is whole, and would not see the end of the connection."""
        if len(self.conn.trailing_data[0]) > limits.MAX_BYTES_AHEAD:
            self.transport.close()
        else:
            self.flow.resume_reading()

    def _make_room(self) -> bool:
        others = cast("set[Connection]", self.connections) - {self}
        idle = [other for other in others if not other._is_answering and not other.transport.is_closing()]
        if idle:
            min(idle, key=lambda other: other.idle_since).transport.close()
        return bool(idle)

    def _refuse(self) -> None:
        message = f"{limits.MAX_CONNECTIONS} connections at most are open, and all wait for answers. Try again later"
        body = json.dumps(RequestError(503, message, code="too_many_connections").body).encode()
        lines = ["HTTP/1.1 503 Service Unavailable", "Content-Type: application/json", f"Content-Length: {len(body)}",
                 "Connection: close", "Retry-After: 1", "", ""]  # fmt: skip
        self.transport.write("\r\n".join(lines).encode() + body)
        self.transport.close()

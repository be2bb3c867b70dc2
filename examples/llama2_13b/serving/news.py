"""What the engine says of a client's requests, from the step that brought it until the client's task reads it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence

from examples.llama2_13b.generate.request import Delta, Request
from examples.llama2_13b.serving.errors import RequestError


class News:
    """Used in asyncio's thread alone.

    Args:
        requests: of one client; deltas carry their places in this list.
    """

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.places = {request.id: place for place, request in enumerate(requests)}
        self.started = time.perf_counter()
        self.last: list[float | None] = [None] * len(requests)  # when each request's last token came
        self._unread: deque[tuple[int, Delta]] = deque()
        self._num_unfinished = len(requests)
        self._error: RequestError | None = None
        self._came = asyncio.Event()

    @property
    def num_unread(self) -> int:
        return len(self._unread)

    def put(self, delta: Delta) -> None:
        self._unread.append((self.places[delta.request_id], delta))
        self._came.set()

    def fail(self, error: RequestError) -> None:
        """What is unread is dropped, and the reader gets the error."""
        self._error = self._error or error
        self._unread.clear()
        self._came.set()

    async def read(self) -> AsyncIterator[tuple[int, Delta]]:
        """(place of the request, delta), until every request has its finish reason.

        Raises:
            RequestError: they ended otherwise.
        """
        while self._num_unfinished:
            await self._came.wait()
            self._came.clear()
            while self._unread:
                place, delta = self._unread.popleft()
                self._num_unfinished -= delta.finish_reason is not None
                yield place, delta
            if self._error is not None:
                raise self._error

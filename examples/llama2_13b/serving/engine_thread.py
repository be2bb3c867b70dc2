"""One thread steps the engine. Clients' tasks, which asyncio runs in another, read what it says of their requests."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from examples.llama2_13b.generate.engine import Engine, EngineStats
from examples.llama2_13b.generate.request import Delta, Request
from examples.llama2_13b.serving.errors import NOT_AGAIN, RequestError
from examples.llama2_13b.serving.metrics import Metrics
from examples.llama2_13b.serving.news import News

RETRY_SECONDS = 60  # at most: what a refused client is told to wait
MAX_UNREAD = 1024  # deltas of a request: a minute's at 17 tokens a second, some 0.5 MB


class EngineThread:
    """
    Args:
        engine: from here on only the thread uses it.
        metrics: of the server.
        capacity: requests that may be under way at once; more are refused.
        max_unread: deltas of each request that a client leaves unread at most; then its requests end.
    """

    def __init__(self, engine: Engine, metrics: Metrics, capacity: int, max_unread: int = MAX_UNREAD) -> None:
        self.capacity, self._max_unread = capacity, max_unread
        self._engine, self._metrics = engine, metrics
        self._news: dict[str, News] = {}
        self._commands: deque[Callable[[], object]] = deque()
        self._wake = threading.Condition()
        self._is_stopping = False
        self._finished: deque[float] = deque(maxlen=32)  # when the last requests ended
        self._thread = threading.Thread(target=self._run, name="engine")
        self.failure: Exception | None = None
        self.stats: EngineStats = engine.stats

    @property
    def num_under_way(self) -> int:
        return len(self._news)

    def start(self) -> None:
        """Call it where asyncio runs."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the step that it is in. What is under way ends without a word."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        self._thread.join()

    def require_room(self, num_requests: int = 1) -> None:
        """Raises: RequestError, if too many are under way, or would ever be; or the engine failed."""
        if self.failure is not None:
            raise RequestError(503, "the engine has failed; the server must be started again", code="engine_failed")
        if num_requests > self.capacity:
            message = f"a request must ask for at most {self.capacity} answers, got {num_requests}"
            raise RequestError(400, message, "n", "invalid_value")
        if len(self._news) + num_requests > self.capacity:
            message = f"{len(self._news)} answers of {self.capacity} at most are under way. Try again later"
            raise RequestError(429, message, code="queue_full", headers={"retry-after": str(self._retry_seconds())})

    def submit(self, requests: Sequence[Request]) -> News:
        """Let a client's requests in, all or none.

        Raises:
            RequestError: there is no room for them.
        """
        self.require_room(len(requests))
        news = News(requests)
        self._news |= dict.fromkeys(news.places, news)
        for request in requests:
            self._command(partial(self._add, news, request))
        return news

    def cancel(self, news: News, error: RequestError | None = None) -> None:
        """End a client's requests; their blocks are free before the next step. Those that have ended stay as they are.

        Args:
            error: what the client's task is told, if it still reads.
        """
        under_way = [name for name in news.places if self._news.pop(name, None) is not None]
        for name in under_way:
            self._command(partial(self._engine.cancel, name))
        if under_way and error is not None:
            news.fail(error)

    def cancel_all(self, error: RequestError) -> None:
        for news in set(self._news.values()):
            self.cancel(news, error)

    def _command(self, command: Callable[[], object]) -> None:
        with self._wake:
            self._commands.append(command)
            self._wake.notify()

    def _retry_seconds(self) -> int:
        """How long the queue's last place takes at the rate of the last answers."""
        if len(self._finished) < 2:
            return 1
        seconds = (time.perf_counter() - self._finished[0]) / len(self._finished)
        return max(1, min(RETRY_SECONDS, round(seconds * self.stats.waiting)))

    # In the engine's thread.

    def _run(self) -> None:
        try:
            while self._take_commands():
                if self._engine.has_work:
                    deltas = self._engine.step()
                    self.stats = self._engine.stats
                    self._in_loop(self._deliver, deltas)
        except Exception as error:  # whatever a model's step can raise: all clients are told
            traceback.print_exc(file=sys.stderr)
            self._in_loop(self._fail, error)

    def _take_commands(self) -> bool:
        """Wait for work, and let requests in and out. False at the end."""
        with self._wake:
            while not (self._commands or self._engine.has_work or self._is_stopping):
                self._wake.wait()
            commands = list(self._commands)
            self._commands.clear()
            if self._is_stopping:
                return False
        for command in commands:
            command()
        self.stats = self._engine.stats
        return True

    def _add(self, news: News, request: Request) -> None:
        try:
            self._engine.add(request)
        except ValueError as error:
            self._in_loop(self.cancel, news, RequestError(400, str(error).partition(": ")[2], code="invalid_value"))

    def _in_loop(self, function: Callable[..., None], *arguments: object) -> None:
        self._loop.call_soon_threadsafe(function, *arguments)

    # In asyncio's thread.

    def _deliver(self, deltas: Sequence[Delta]) -> None:
        now = time.perf_counter()
        for delta in deltas:
            news = self._news.get(delta.request_id)
            if news is None:
                continue  # cancelled
            if news.num_unread >= self._max_unread * len(news.requests):
                message = f"the client left {news.num_unread} pieces of its answer unread"
                self.cancel(news, RequestError(408, message, code="client_too_slow", headers=NOT_AGAIN))
                continue
            if delta.finish_reason == "error":
                message = "the model's scores were not finite, so there was no token to choose"
                self.cancel(news, RequestError(500, message, code="scores_not_finite", headers=NOT_AGAIN))
                continue
            self._metrics.saw(news, delta, now)
            if delta.finish_reason is not None:
                del self._news[delta.request_id]
                self._finished.append(now)
            news.put(delta)

    def _fail(self, error: Exception) -> None:
        self.failure = error
        self.cancel_all(RequestError(500, "the engine has failed while it answered", code="engine_failed"))

"""A server in this process, on a free port of 127.0.0.1; and an engine whose steps the test decides."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections import deque

from examples.llama2_13b.generate.engine import EngineStats
from examples.llama2_13b.generate.request import Delta
from examples.llama2_13b.serving.engine_thread import EngineThread
from examples.llama2_13b.serving.http_server import HttpServer, listen
from examples.llama2_13b.serving.limits import is_loopback
from examples.llama2_13b.serving.metrics import Metrics
from examples.llama2_13b.serving.server_state import Limits, ServerState
from tests.hanging import HANGING

SOON = 60  # seconds for what takes milliseconds, on a machine that does other things too


class ScriptedEngine:
    """Each step gives every running request the text `word`, once the test lets it; a request holds one block."""

    def __init__(self, word="word ", max_rows=2, seconds_per_step=0.0):
        self.word, self.max_rows, self.seconds_per_step = word, max_rows, seconds_per_step
        self.gate = threading.Event()  # closed: steps bring nothing
        self.gate.set()
        self.added, self.cancelled = [], []
        self.error, self.ends_with = None, "length"
        self._running, self._waiting, self._news = {}, deque(), []
        self._generated = 0

    def add(self, request):
        if request.prompt[-1] == 13:
            raise ValueError(f"request {request.id}: prompt must be lucky, got 13")
        self.added.append(request)
        self._waiting.append(request)

    def cancel(self, name):
        found = name in self._running or any(request.id == name for request in self._waiting)
        self._running.pop(name, None)
        self._waiting = deque(request for request in self._waiting if request.id != name)
        if found:
            self.cancelled.append(name)
            self._news.append(Delta(name, finish_reason="cancelled"))
        return found

    @property
    def has_work(self):
        return bool(self._running or self._waiting or self._news)

    @property
    def stats(self):
        free = self.max_rows - len(self._running)
        return EngineStats(len(self._running), len(self._waiting), free, self.max_rows, 0, 0, 0, 0, self._generated)

    def step(self):
        time.sleep(self.seconds_per_step)
        while self._waiting and len(self._running) < self.max_rows:
            request = self._waiting.popleft()
            self._running[request.id] = (request, 0)
        news, self._news = self._news, []
        if self.error is not None:
            raise self.error
        if not self.gate.wait(0.01):
            return news
        for name, (request, count) in list(self._running.items()):
            is_last = count + 1 == request.max_new_tokens or self.ends_with == "error"
            self._running[name] = request, count + 1
            if is_last:
                del self._running[name]
            self._generated += 1
            news.append(Delta(name, (5,), self.word, finish_reason=self.ends_with if is_last else None))
        return news


@contextlib.contextmanager
def served(engine, model, capacity=8, max_unread=1024, api_key=None, host="127.0.0.1", **limits):
    """(state, address). At the end nothing is under way, and every block is free."""
    metrics = Metrics()
    thread = EngineThread(engine, metrics, capacity, max_unread)
    metrics.watch(lambda: thread.stats)
    state = ServerState(model, thread, metrics, Limits(**limits), api_key, is_loopback(host))
    listener = listen("127.0.0.1", 0)
    server = HttpServer(state, listener)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    runs = threading.Thread(target=lambda: asyncio.run(server._run()))
    runs.start()
    try:
        until(lambda: server.started)
        yield state, address
        if thread.failure is None and state.draining_since is None:
            until(lambda: thread.num_under_way == 0 and not engine.has_work)
            assert engine.stats.free_blocks == engine.stats.total_blocks
    finally:
        server.should_exit = True
        runs.join(HANGING)
        assert not runs.is_alive()


def until(condition, seconds=SOON):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.005)


def raw(address, method, path, body=b"", headers=()):
    """A connection on which a request was written, as bytes."""
    host, port = address.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=SOON)
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}:{port}", f"Content-Length: {len(body)}", *headers, "", ""]
    connection.sendall("\r\n".join(lines).encode() + body)
    return connection

"""uvicorn, ended by signals in two steps: the first lets requests under way end, the second does not."""

from __future__ import annotations

import asyncio
import logging
import socket
from concurrent.futures import ThreadPoolExecutor
from types import FrameType

import uvicorn

from examples.llama2_13b.io.remarks import say
from examples.llama2_13b.serving import limits
from examples.llama2_13b.serving.app import make_app
from examples.llama2_13b.serving.connection import Connection
from examples.llama2_13b.serving.errors import RequestError
from examples.llama2_13b.serving.server_state import ServerState

READERS = 2  # requests that are made into tokens at a time: each takes memory, and the cores have other work
LAST_SECONDS = 5  # for what was written to reach its clients, at the end


class HttpServer(uvicorn.Server):
    """
    Args:
        state: of the server.
        listener: bound to the address.
    """

    def __init__(self, state: ServerState, listener: socket.socket) -> None:
        config = uvicorn.Config(
            make_app(state),
            http=Connection,
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=LAST_SECONDS,
        )
        super().__init__(config)
        logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of each client that has left
        self._state, self._listener = state, listener

    def run_until_stopped(self) -> int:
        """Serve until a signal, or until the engine fails; the status to exit with."""
        asyncio.run(self._run())
        return 0 if self._state.engine.failure is None else 1

    async def _run(self) -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(READERS, "reader"))
        engine = self._state.engine
        engine.start()
        try:
            await self.serve(sockets=[self._listener])
        finally:
            await asyncio.to_thread(engine.stop)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        say(f"{self._state.model.name} is served at {url_of(self._listener)}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Of a signal."""
        if self._state.draining_since is not None:
            self.should_exit = self.force_exit = True
        self._state.drain()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        if self._state.is_drained or self._state.engine.failure is not None:
            self._state.engine.cancel_all(RequestError(503, "the server is stopping", code="draining"))
            self.should_exit = True
        return bool(await super().on_tick(counter))


def listen(host: str, port: int) -> socket.socket:
    """A socket at the address; port 0 is any that is free.

    Raises:
        OSError: the address cannot be had; it is named.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: what was written and is not taken does not stay for ever
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(limits.SEND_SECONDS * 1000))
        listener.bind(address)
    except OSError as error:
        cure = "Name another --port, or --port 0 for one that is free"
        raise OSError(
            f"serve: --host and --port must be free to listen at, got {host} {port}; {error}. {cure}"
        ) from None
    return listener


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

"""What may come in: from whom, how much of it, and how long it may take."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
from collections.abc import Coroutine
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Receive, Send

from examples.llama2_13b.serving.errors import NOT_AGAIN, RequestError

MAX_CONNECTIONS = 512  # half of the files that a process may mostly have open
HEAD_SECONDS = 10  # for the head of a request to arrive
MAX_BYTES_AHEAD = 64 * 2**10  # that a client may write while it waits for an answer
BODY_SECONDS = 30  # for a body to arrive
SEND_SECONDS = 30  # in which a client must take something of what it is sent
# What is still read of a body that is too long, and dropped. A client that still writes would not see the answer else.
DROPPED_BYTES, DROPPED_SECONDS = 64 * 2**20, 10


class ClientGone(Exception):
    """Nobody reads the answer."""


def require_key(headers: Headers, key: str | None) -> None:
    """Raises: RequestError, without the key in `Authorization: Bearer KEY`. Comparing takes as long for every key."""
    given = headers.get("authorization", "")
    scheme, _, word = given.partition(" ")
    right = hmac.compare_digest(word.strip().encode("latin-1"), (key or "").encode())
    if key is not None and not (right and scheme.lower() == "bearer"):
        message = "the API key is missing or wrong; send it as `Authorization: Bearer KEY`"
        raise RequestError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def require_own_page(headers: Headers, only_here: bool) -> None:
    """A page of another site that a browser on this machine shows must not use the server.

    Browsers name a page's site in `Origin`. A name that its owner points at 127.0.0.1 stands in `Host`.

    Raises:
        RequestError: the request comes from such a page.
    """
    host = headers.get("host", "")
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    if only_here and not is_loopback(name.strip("[]").lower()):
        raise RequestError(403, f"Host must be localhost or 127.0.0.1 or ::1 here, got {host!r}", code="wrong_host")
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2].lower() != host.lower():
        raise RequestError(403, f"pages of {origin!r} may not use this server", code="wrong_origin")


def is_loopback(host: str) -> bool:
    """Whether no other machine reaches it: localhost, 127.0.0.0/8 or ::1. A name that only begins so is another's."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def read_body(headers: Headers, receive: Receive, most: int) -> bytes:
    """The body of a request.

    Raises:
        RequestError: it is longer than `most` bytes, which is told as soon as it is known; or slow.
        ClientGone: the client left before its end.
    """
    length = headers.get("content-length", "")
    if length.isdigit() and int(length) > most:
        raise _too_large(most)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                body += message.get("body", b"")
                if len(body) > most:
                    raise _too_large(most)
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        late = f"the body must arrive within {BODY_SECONDS} seconds"
        raise RequestError(408, late, code="timeout", headers={"connection": "close"}) from None


def _too_large(most: int) -> RequestError:
    message = f"the body must be at most {most} bytes long"
    return RequestError(413, message, code="body_too_large", headers={"connection": "close"})


async def drop_rest(receive: Receive) -> None:
    """Read what a client still writes, up to a limit."""
    dropped = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DROPPED_SECONDS):
            while dropped < DROPPED_BYTES:
                message = await receive()
                dropped += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


async def send_soon(send: Send, message: dict[str, Any]) -> None:
    """Raises: ClientGone, if the client takes nothing for SEND_SECONDS."""
    try:
        async with asyncio.timeout(SEND_SECONDS):
            await send(message)
    except TimeoutError:
        raise ClientGone from None


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do the work while the client is there.

    Raises:
        ClientGone: it left; the work was cancelled.
    """
    worker, watcher = asyncio.create_task(work), asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait((worker, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not worker.done():
            raise ClientGone
        await worker
    finally:
        worker.cancel()
        watcher.cancel()
        await asyncio.gather(worker, watcher, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def took_too_long(seconds: float) -> RequestError:
    message = f"the answer took longer than {seconds:g} seconds"
    return RequestError(504, message, code="timeout", headers=NOT_AGAIN)

"""An HTTP request for an answer, from its first byte to the last of the answer."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from examples.llama2_13b.generate.request import Delta
from examples.llama2_13b.serving.asked import Answer, Asked, without_end
from examples.llama2_13b.serving.errors import RequestError
from examples.llama2_13b.serving.forms import Form
from examples.llama2_13b.serving.limits import ClientGone, drop_rest, read_body, send_soon, took_too_long, unless_gone
from examples.llama2_13b.serving.news import News
from examples.llama2_13b.serving.server_state import ServerState

OUTCOMES = {429: "busy", 503: "draining", 504: "timed_out"}
STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # a proxy of nginx would hold chunks back
]


class Answering:
    """The endpoint of a form of request."""

    def __init__(self, form: Form, state: ServerState) -> None:
        self._form, self._state = form, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        outcome = "failed"
        try:
            await self._answer(Headers(scope=scope), receive, send)
            outcome = "answered"
        except (ClientGone, asyncio.CancelledError):  # the latter of clients that did not read when the server stopped
            outcome = "left"
        except RequestError as error:
            outcome = OUTCOMES.get(error.status, "refused" if error.status < 500 else "failed")
            if not isinstance(error, _AlreadyTold):
                await send_error(error, receive, send)
        finally:
            self._state.metrics.count(self._form.path, outcome)

    async def _answer(self, headers: Headers, receive: Receive, send: Send) -> None:
        self._state.require_open()
        self._state.engine.require_room()  # a client that is refused anyway costs no reading
        body = await read_body(headers, receive, self._state.limits.max_body_bytes)
        # A long prompt takes a second to read, in which other clients get their tokens.
        asked = await asyncio.to_thread(self._form.read, body, self._state.model)
        self._state.require_open()
        engine, seconds = self._state.engine, self._state.limits.request_seconds
        news = engine.submit(asked.requests)
        limit = asyncio.get_running_loop().call_later(seconds, engine.cancel, news, took_too_long(seconds))
        write = self._stream if asked.stream else self._write
        try:
            await unless_gone(receive, write(asked, news, send))
        finally:
            limit.cancel()
            engine.cancel(news)

    async def _write(self, asked: Asked, news: News, send: Send) -> None:
        answers = [Answer() for _ in asked.requests]
        async for place, delta in news.read():
            self._add(answers[place], without_end(delta, asked.requests[place]))
        choices = [self._form.whole(index, answer, asked, self._state.model) for index, answer in enumerate(answers)]
        content = {**self._head(asked, self._form.object), "choices": choices, "usage": usage(asked, answers)}
        await send_json(200, content, {"x-request-id": asked.id}, send)

    async def _stream(self, asked: Asked, news: News, send: Send) -> None:
        """Nothing is sent before the first news: until then a failure has a status of its own."""
        answers = [Answer() for _ in asked.requests]
        has_begun = False
        try:
            async for place, delta in news.read():
                if not has_begun:
                    await self._begin(asked, send)
                    has_begun = True
                delta = without_end(delta, asked.requests[place])
                choice = self._form.chunk(place, delta, answers[place], self._state.model)
                self._add(answers[place], delta)
                await self._send_chunk(asked, [choice], send)
        except RequestError as error:
            if not has_begun:
                raise
            await _send_event(error.body, send)
            await send_soon(send, {"type": "http.response.body", "body": b"", "more_body": False})
            raise _AlreadyTold(error) from None
        if asked.include_usage:
            await self._send_chunk(asked, [], send, usage=usage(asked, answers))
        await send_soon(send, {"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})

    async def _begin(self, asked: Asked, send: Send) -> None:
        headers = [*STREAM_HEADERS, (b"x-request-id", asked.id.encode())]
        await send_soon(send, {"type": "http.response.start", "status": 200, "headers": headers})
        for index in range(len(asked.requests)):
            if (choice := self._form.first(index, asked)) is not None:
                await self._send_chunk(asked, [choice], send)

    async def _send_chunk(self, asked: Asked, choices: list[Any], send: Send, **fields: Any) -> None:
        if asked.include_usage:
            fields = {"usage": None, **fields}
        await _send_event({**self._head(asked, self._form.chunk_object), "choices": choices, **fields}, send)

    def _head(self, asked: Asked, kind: str) -> dict[str, Any]:
        return {"id": asked.id, "object": kind, "created": asked.created, "model": self._state.model.name}

    def _add(self, answer: Answer, delta: Delta) -> None:
        answer.text += delta.text
        answer.num_tokens += len(delta.tokens)
        answer.logprobs.extend(delta.logprobs)
        answer.num_characters += sum(len(self._state.model.token_text([each.token])) for each in delta.logprobs)
        answer.finish_reason = delta.finish_reason


class _AlreadyTold(RequestError):
    """The client has read of it in its stream."""

    def __init__(self, error: RequestError) -> None:
        super().__init__(error.status, error.message)


def usage(asked: Asked, answers: list[Answer]) -> dict[str, int]:
    """Tokens, without end tokens."""
    new = sum(answer.num_tokens for answer in answers)
    prompt = asked.num_prompt_tokens
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


async def send_json(status: int, content: Any, headers: dict[str, str], send: Send, is_last: bool = True) -> None:
    body = _json(content)
    pairs = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    encoded = [(name.encode(), value.encode("latin-1", "replace")) for name, value in pairs.items()]
    await send_soon(send, {"type": "http.response.start", "status": status, "headers": encoded})
    await send_soon(send, {"type": "http.response.body", "body": body, "more_body": not is_last})


async def send_error(error: RequestError, receive: Receive, send: Send) -> None:
    """The error object. Where the connection then closes, what the client still writes is read first."""
    closes = error.headers.get("connection") == "close"
    await send_json(error.status, error.body, error.headers, send, is_last=not closes)
    if closes:
        await drop_rest(receive)
        await send_soon(send, {"type": "http.response.body", "body": b"", "more_body": False})


async def _send_event(content: Any, send: Send) -> None:
    await send_soon(send, {"type": "http.response.body", "body": b"data: %s\n\n" % _json(content), "more_body": True})


def _json(content: Any) -> bytes:
    """An error may name a field whose name is no Unicode: a question mark stands there."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")

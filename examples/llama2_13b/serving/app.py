"""The paths of the server."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from examples.llama2_13b.serving.answering import Answering, send_error
from examples.llama2_13b.serving.asked import no_model
from examples.llama2_13b.serving.errors import RequestError
from examples.llama2_13b.serving.forms import FORMS
from examples.llama2_13b.serving.limits import require_key, require_own_page
from examples.llama2_13b.serving.server_state import ServerState

PAGE = Path(__file__).with_name("chat.html")


def make_app(state: ServerState) -> ASGIApp:
    paths = _Paths(state)
    answers = [Route(form.path, Answering(form, state), methods=["POST"]) for form in FORMS]
    routes = [
        *answers,
        Route("/v1/models", paths.models),
        Route("/v1/models/{name:path}", paths.model),
        Route("/health", paths.health),
        Route("/ready", paths.ready),
        Route("/metrics", paths.metrics),
        Route("/", paths.page),
    ]
    handlers: dict[Any, Any] = {RequestError: _refused, HTTPException: _not_found, Exception: _failed}
    return _Guard(Starlette(routes=routes, exception_handlers=handlers), state)


class _Paths:
    """Whatever is answered at once."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        text = PAGE.read_text(encoding="utf-8")
        self._page = HTMLResponse(text, headers={"content-security-policy": policy(text), "cache-control": "no-cache"})

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._described()]})

    async def model(self, request: Request) -> Response:
        if (name := request.path_params["name"]) != self._state.model.name:
            raise no_model(name, self._state.model)
        return JSONResponse(self._described())

    def _described(self) -> dict[str, Any]:
        model = self._state.model
        described = {"id": model.name, "object": "model", "created": model.created, "owned_by": "fusionkit"}
        return described | {"max_model_len": model.positions}

    async def health(self, request: Request) -> Response:
        """Whether the process can answer at all."""
        is_well = self._state.engine.failure is None
        return JSONResponse({"status": "ok" if is_well else "failed"}, 200 if is_well else 503)

    async def ready(self, request: Request) -> Response:
        """Whether it takes new requests."""
        self._state.require_open()
        return await self.health(request)

    async def metrics(self, request: Request) -> Response:
        return Response(self._state.metrics.page(), headers={"content-type": CONTENT_TYPE_LATEST})

    async def page(self, request: Request) -> Response:
        return self._page


class _Guard:
    """Before every path: who asks."""

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self._app, self._state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            try:
                require_own_page(headers, self._state.is_loopback)
                if scope["path"].startswith("/v1/"):
                    require_key(headers, self._state.api_key)
            except RequestError as error:
                await send_error(error, receive, send)
                return
        await self._app(scope, receive, send)


def policy(page: str) -> str:
    """The page's own script and style, and this server; nothing else. Source: Content Security Policy Level 3."""
    hashes = {
        tag: [
            "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
            for text in re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        ]
        for tag in ("script", "style")
    }
    own = [f"{tag}-src {' '.join(found)}" for tag, found in hashes.items()]
    nothing = [f"{kind} 'none'" for kind in ("default-src", "base-uri", "form-action", "frame-ancestors")]
    return "; ".join([*nothing, "connect-src 'self'", "img-src data:", *own])


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return JSONResponse(error.body, error.status, error.headers)


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path} is not served here: {error.detail}"
    return JSONResponse(RequestError(error.status_code, message).body, error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse(RequestError(500, "the server has failed at this request").body, 500)

"""What a client is told when its request is refused or fails: OpenAI's error object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KINDS = {429: "rate_limit_error"}
# OpenAI's clients send a request again after 429 and 5xx. A request that took too long would only take long again.
NOT_AGAIN = {"x-should-retry": "false"}


class RequestError(Exception):
    """Becomes an answer with this status.

    Args:
        status: of HTTP.
        message: for people.
        param: the field that is wrong; None if it is no field.
        code: for programs.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def wrong(param: str, rule: str, got: object) -> RequestError:
    """A field that has not the value that it must have."""
    return RequestError(400, f"{param} must be {rule}, got {_short(got)}", param, "invalid_value")


def too_long(param: str, got: str, positions: int, context: str) -> RequestError:
    """A prompt that leaves no room for its answer."""
    message = f"{param} must leave room for an answer in {positions} tokens, got {got}; {context}"
    return RequestError(400, message, param, "context_length_exceeded")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

"""The fields of a request's JSON object. Each is read with its rule; one that nobody read is refused by name."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from examples.llama2_13b.io.text import require_text
from examples.llama2_13b.serving.errors import RequestError, wrong

# They tell a provider who asks; nothing in an answer depends on them.
ABOUT_THE_ASKER = ("user", "safety_identifier", "prompt_cache_key")


class Fields:
    """An object's fields; null is as good as absent.

    Raises:
        RequestError: the text is no JSON object.
    """

    def __init__(self, body: bytes) -> None:
        try:
            values = json.loads(body, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise RequestError(400, f"the body must be a JSON object: {error}", code="invalid_json") from None
        if not isinstance(values, dict):
            raise RequestError(400, f"the body must be a JSON object, got {type(values).__name__}", code="invalid_json")
        self._left = {name: value for name, value in values.items() if value is not None}

    def take(self, name: str) -> Any:
        """As it came; None if it did not."""
        return self._left.pop(name, None)

    def boolean(self, name: str) -> bool:
        value = self.take(name)
        if value not in (None, True, False) or isinstance(value, int | float) and not isinstance(value, bool):
            raise wrong(name, "true or false", value)
        return bool(value)

    def integer(self, name: str, low: int, high: int | None = None) -> int | None:
        value = self.take(name)
        if value is None:
            return None
        if type(value) is not int or value < low or (high is not None and value > high):
            rule = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
            raise wrong(name, rule, value)
        return value

    def texts(self, name: str, most: int) -> tuple[str, ...]:
        """A text or a list of texts; none of them is empty."""
        value = self.take(name)
        values = [] if value is None else value if isinstance(value, list) else [value]
        if len(values) > most or not all(isinstance(text, str) and text for text in values):
            raise wrong(name, f"a text or at most {most} texts, none of them empty", value)
        return tuple(unicode(text, name) for text in values)

    def mapping(self, name: str, known: Collection[str]) -> Fields:
        """An object within the object."""
        value = self.take(name)
        if value is not None and not isinstance(value, dict):
            raise wrong(name, "an object", value)
        inner = Fields(b"{}")
        inner._left = {key: each for key, each in (value or {}).items() if each is not None}
        for key in inner._left:
            if key not in known:
                raise RequestError(400, f"{name}.{key} is not known here", f"{name}.{key}", "unknown_parameter")
        return inner

    def refuse_others(self, not_done: Mapping[str, Collection[Any]]) -> None:
        """Call last.

        Args:
            not_done: fields of OpenAI's interface without effect here -> the values that ask for nothing.
        """
        for name in ABOUT_THE_ASKER:
            value = self.take(name)
            if not isinstance(value, str | None):
                raise wrong(name, "a text", value)
        for name, value in self._left.items():
            if name not in not_done:
                raise RequestError(400, f"{name} is no field of this request", name, "unknown_parameter")
            if not any(type(value) is type(neutral) and value == neutral for neutral in not_done[name]):
                allowed = " or ".join(json.dumps(neutral) for neutral in not_done[name])
                cure = f"Leave it out, or send {allowed}" if allowed else "Leave it out"
                raise RequestError(400, f"{name} is not supported here. {cure}", name, "unsupported_parameter")


def unicode(text: str, name: str) -> str:
    """The text, if a tokenizer takes it."""
    try:
        require_text(text, name)
    except ValueError as error:
        raise RequestError(400, str(error), name, "invalid_value") from None
    return text


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")

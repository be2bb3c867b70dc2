"""The messages of a conversation to the tokens that the model answers."""

from __future__ import annotations

import sys
from typing import Any

from examples.llama2_13b.data import conversation
from examples.llama2_13b.data.samples import encode_prompt
from examples.llama2_13b.serving.errors import RequestError, wrong
from examples.llama2_13b.serving.fields import unicode
from examples.llama2_13b.serving.served_model import ServedModel

# OpenAI's names of roles -> those of templates.
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
TURNS = ("user", "assistant")
READ = {"role", "content"}
WITHOUT_EFFECT = {"name", "refusal", "annotations", "audio", "tool_calls", "function_call"}  # if null or empty


def encode_messages(messages: Any, model: ServedModel) -> list[int]:
    """Token ids, by the model's chat template. Without one they are written as in training without a template.

    Args:
        messages: as they came. The last is not the assistant's.

    Raises:
        RequestError: they are no such list, or not what the template takes; the message is named if it is one.
    """
    if not isinstance(messages, list) or not messages:
        raise wrong("messages", "a list of at least one message", messages)
    read = [_read(message, f"messages[{number}]") for number, message in enumerate(messages)]
    if read[-1]["role"] == "assistant":
        raise wrong("messages", "ended by a user's message", "an assistant's")
    model.require_short([message["content"] for message in read], "messages")
    if model.template is None:
        return _without_template(read, model)
    try:
        return conversation.encode_messages(read, model.tokenizer, model.template)
    except ValueError as error:
        raise RequestError(400, str(error), "messages", "invalid_value") from None


def _without_template(messages: list[dict[str, str]], model: ServedModel) -> list[int]:
    for number, message in enumerate(messages):
        if message["role"] != TURNS[number % 2]:
            rule = f"{TURNS[number % 2]!r}, as the model has no chat template"
            raise wrong(f"messages[{number}].role", rule, message["role"])
    texts = [message["content"] for message in messages]
    turns = list(zip(texts[:-1:2], texts[1::2], strict=True))
    return encode_prompt(turns, texts[-1], model.tokenizer, sys.maxsize)


def _read(message: Any, where: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise wrong(where, "an object with role and content", message)
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise wrong(f"{where}.role", " or ".join(ROLES), role)
    for name, value in message.items():
        if name not in READ and (name not in WITHOUT_EFFECT or value):
            raise RequestError(400, f"{where}.{name} is not supported here", f"{where}.{name}", "unsupported_parameter")
    return {"role": ROLES[role], "content": _text(message.get("content"), f"{where}.content")}


def _text(content: Any, where: str) -> str:
    """A text, or parts of which each is a text."""
    if isinstance(content, str):
        return unicode(content, where)
    if not isinstance(content, list):
        raise wrong(where, "a text or a list of parts", content)
    texts = []
    for number, part in enumerate(content):
        part_where = f"{where}[{number}]"
        if not isinstance(part, dict) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, dict) else part
            message = f"{part_where} must be of type 'text', got {kind!r}; other parts are not supported here"
            raise RequestError(400, message, part_where, "unsupported_parameter")
        if not isinstance(part.get("text"), str):
            raise wrong(f"{part_where}.text", "a text", part.get("text"))
        texts.append(unicode(part["text"], part_where))
    return "".join(texts)

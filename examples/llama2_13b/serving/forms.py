"""The two forms of OpenAI's interface: how each is read, and how its answers and their chunks are written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from examples.llama2_13b.generate.request import Delta
from examples.llama2_13b.serving import logprobs
from examples.llama2_13b.serving.asked import (
    MAX_LOGPROBS,
    Answer,
    Asked,
    make_requests,
    read_stream,
    require_few,
    require_model,
)
from examples.llama2_13b.serving.conversation import encode_messages
from examples.llama2_13b.serving.errors import RequestError, wrong
from examples.llama2_13b.serving.fields import Fields, unicode
from examples.llama2_13b.serving.served_model import ServedModel

MAX_NEW_TOKENS = 16  # of /v1/completions, as OpenAI's
# Fields of OpenAI's interface that are not done, and the values with which they ask for nothing.
NOT_IN_COMPLETIONS: dict[str, Sequence[Any]] = {"best_of": (1,), "suffix": ("",)}
NOT_IN_CONVERSATIONS: dict[str, Sequence[Any]] = {
    "audio": (), "function_call": ("none",), "functions": ([],), "metadata": ({},), "modalities": (["text"],),
    "moderation": (), "parallel_tool_calls": (True, False), "prediction": (), "prompt_cache_options": (),
    "prompt_cache_retention": (), "reasoning_effort": ("none",), "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"), "store": (False,), "tool_choice": ("none",), "tools": ([],), "verbosity": (),
    "web_search_options": (),
}  # fmt: skip


class Form(Protocol):
    """A form of request and answer.

    Attributes:
        path: where requests go.
        object, chunk_object: what the answer, and a chunk of a stream, call themselves.
    """

    path: str
    object: str
    chunk_object: str

    def read(self, body: bytes, model: ServedModel) -> Asked: ...

    def first(self, index: int, asked: Asked) -> dict[str, Any] | None:
        """The choice of the chunk before the first token, if there is one."""

    def chunk(self, index: int, delta: Delta, before: Answer, model: ServedModel) -> dict[str, Any]:
        """The choice of a chunk. `before`: what was sent of this choice."""

    def whole(self, index: int, answer: Answer, asked: Asked, model: ServedModel) -> dict[str, Any]: ...


class Completions:
    """A text goes on."""

    path, object, chunk_object = "/v1/completions", "text_completion", "text_completion"

    def read(self, body: bytes, model: ServedModel) -> Asked:
        fields = Fields(body)
        require_model(fields, model)
        stream, include_usage = read_stream(fields)
        texts_meant = fields.boolean("parse_special")
        prompts, texts = _prompts(fields.take("prompt"), texts_meant, model)
        limit = fields.integer("max_tokens", 1) or MAX_NEW_TOKENS
        num_logprobs = fields.integer("logprobs", 0, MAX_LOGPROBS)
        echo = fields.boolean("echo")
        if echo and num_logprobs is not None:
            message = "echo is not supported together with logprobs: those of a prompt are not computed here"
            raise RequestError(400, message, "echo", "unsupported_parameter")
        name, requests = make_requests("cmpl", prompts, "prompt", limit, fields, model, num_logprobs)
        fields.refuse_others(NOT_IN_COMPLETIONS)
        each = len(requests) // len(prompts)
        echoes = tuple(text if echo else "" for text in texts for _ in range(each))
        return Asked(name, requests, sum(map(len, prompts)), stream, include_usage, echoes)

    def first(self, index: int, asked: Asked) -> dict[str, Any] | None:
        text = asked.echoes[index]
        return {"index": index, "text": text, "logprobs": None, "finish_reason": None} if text else None

    def chunk(self, index: int, delta: Delta, before: Answer, model: ServedModel) -> dict[str, Any]:
        shown = logprobs.of_completion(delta.logprobs, before.num_characters, model) if delta.logprobs else None
        return {"index": index, "text": delta.text, "logprobs": shown, "finish_reason": delta.finish_reason}

    def whole(self, index: int, answer: Answer, asked: Asked, model: ServedModel) -> dict[str, Any]:
        wanted = asked.requests[index].settings.num_logprobs is not None
        shown = logprobs.of_completion(answer.logprobs, 0, model) if wanted else None
        text = asked.echoes[index] + answer.text
        return {"index": index, "text": text, "logprobs": shown, "finish_reason": answer.finish_reason}


class ChatCompletions:
    """A conversation goes on."""

    path, object, chunk_object = "/v1/chat/completions", "chat.completion", "chat.completion.chunk"

    def read(self, body: bytes, model: ServedModel) -> Asked:
        fields = Fields(body)
        require_model(fields, model)
        stream, include_usage = read_stream(fields)
        prompt = encode_messages(fields.take("messages"), model)
        limit = _limit_of_conversation(fields, len(prompt), model)
        num_logprobs = _logprobs_of_conversation(fields)
        name, requests = make_requests("chatcmpl", [prompt], "messages", limit, fields, model, num_logprobs)
        fields.refuse_others(NOT_IN_CONVERSATIONS)
        return Asked(name, requests, len(prompt), stream, include_usage, ())

    def first(self, index: int, asked: Asked) -> dict[str, Any] | None:
        delta = {"role": "assistant", "content": "", "refusal": None}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def chunk(self, index: int, delta: Delta, before: Answer, model: ServedModel) -> dict[str, Any]:
        shown = logprobs.of_conversation(delta.logprobs, model) if delta.logprobs else None
        content = {"content": delta.text} if delta.text else {}
        return {"index": index, "delta": content, "logprobs": shown, "finish_reason": delta.finish_reason}

    def whole(self, index: int, answer: Answer, asked: Asked, model: ServedModel) -> dict[str, Any]:
        wanted = asked.requests[index].settings.num_logprobs is not None
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        shown = logprobs.of_conversation(answer.logprobs, model) if wanted else None
        return {"index": index, "message": message, "logprobs": shown, "finish_reason": answer.finish_reason}


FORMS: tuple[Form, ...] = (Completions(), ChatCompletions())


def _prompts(value: Any, texts_meant: bool, model: ServedModel) -> tuple[list[list[int]], list[str]]:
    """(token ids, text) of each prompt: a text, a list of texts, token ids, or a list of lists of these."""
    values = [value] if isinstance(value, str) or (isinstance(value, list) and _are_tokens(value)) else value
    if not isinstance(values, list) or not values:
        raise wrong("prompt", "a text, a list of texts, token ids, or a list of lists of token ids", value)
    require_few(len(values), "prompt")
    encoded, texts = [], []
    for each in values:
        if isinstance(each, str):
            text = unicode(each, "prompt")
            model.require_short([text], "prompt")
            tokens = [*model.tokenizer.begin, *model.tokenizer.encode(text, special=texts_meant)]
            if not tokens:
                raise wrong("prompt", "of at least one token: this model's tokenizer adds none to a text", text)
            encoded.append(tokens)
            texts.append(text)
        elif isinstance(each, list) and each and _are_tokens(each):
            if beyond := [token for token in each if not 0 <= token < model.vocab_size]:
                raise wrong("prompt", f"of token ids from 0 to {model.vocab_size - 1}", beyond[0])
            encoded.append(each)
            texts.append(model.tokenizer.decode(each))
        else:
            raise wrong("prompt", "of texts, or of lists of token ids that are not empty", each)
    return encoded, texts


def _are_tokens(values: list[Any]) -> bool:
    return bool(values) and all(type(value) is int for value in values)


def _limit_of_conversation(fields: Fields, num_prompt: int, model: ServedModel) -> int | None:
    """New tokens at most. `max_tokens` is the older name."""
    newer, older = fields.integer("max_completion_tokens", 1), fields.integer("max_tokens", 1)
    if newer is not None and older is not None and newer != older:
        message = f"max_tokens must be left out with max_completion_tokens, got {older} and {newer}"
        raise RequestError(400, message, "max_tokens", "invalid_value")
    if newer or older:
        return newer or older
    return model.max_new_tokens and max(1, min(model.max_new_tokens, model.positions - num_prompt))


def _logprobs_of_conversation(fields: Fields) -> int | None:
    wanted, top = fields.boolean("logprobs"), fields.integer("top_logprobs", 0, MAX_LOGPROBS)
    if top is not None and not wanted:
        raise RequestError(400, "top_logprobs must be left out without logprobs", "top_logprobs", "invalid_value")
    return (top or 0) if wanted else None

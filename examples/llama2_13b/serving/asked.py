"""What a request asks for, whichever of the two forms it has; and the fields that both forms have."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from examples.llama2_13b.generate.request import Delta, Request, SamplingSettings, TokenLogprobs
from examples.llama2_13b.serving.errors import RequestError, too_long, wrong
from examples.llama2_13b.serving.fields import Fields
from examples.llama2_13b.serving.served_model import ServedModel

MAX_CHOICES = 128  # OpenAI's
MAX_ANSWERS = 2048  # prompts times choices, of which 4 MiB could name 100 million. The queue's own limit comes later
MAX_STOPS = 4  # OpenAI's
MAX_LOGPROBS = 20  # OpenAI's of conversations
SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """
    Args:
        id: of the answer.
        requests: of the engine, one for each choice; those of a prompt stand together.
        num_prompt_tokens: of all prompts, each counted once.
        stream: as it is written, or all at the end.
        include_usage: a last chunk of a stream has the counts of tokens.
        echoes: text that stands before each choice; empty for none.
        created: when, in seconds since 1970.
    """

    id: str
    requests: tuple[Request, ...]
    num_prompt_tokens: int
    stream: bool
    include_usage: bool
    echoes: tuple[str, ...]
    created: int = field(default_factory=lambda: int(time.time()))


@dataclass
class Answer:
    """A choice as far as it is written. `num_characters`: of the tokens in `logprobs`, each as a text of its own."""

    text: str = ""
    num_tokens: int = 0
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    num_characters: int = 0
    finish_reason: str | None = None


def without_end(delta: Delta, request: Request) -> Delta:
    """The news as clients get it: an end token is no part of the answer, its logprobs or its count.

    Source: the example with logprobs of OpenAI's API reference, "Create chat completion". Its 9 `completion_tokens` and
    9 entries are those of the text.
    """
    is_end = not request.ignore_eos and delta.tokens and delta.tokens[-1] in request.eos_token_ids
    return dataclasses.replace(delta, tokens=delta.tokens[:-1], logprobs=delta.logprobs[:-1]) if is_end else delta


def require_model(fields: Fields, model: ServedModel) -> None:
    name = fields.take("model")
    if not isinstance(name, str):
        raise wrong("model", f"the name of a model, such as {model.name}", name)
    if name != model.name:
        raise no_model(name, model)


def no_model(name: str, model: ServedModel) -> RequestError:
    return RequestError(404, f"model {name!r} is not served here; {model.name!r} is", "model", "model_not_found")


def read_stream(fields: Fields) -> tuple[bool, bool]:
    """(stream, include_usage)."""
    stream = fields.boolean("stream")
    options = fields.mapping("stream_options", ("include_usage", "include_obfuscation"))
    if options.boolean("include_obfuscation"):
        name = "stream_options.include_obfuscation"
        raise RequestError(400, f"{name} is not supported here. Send false", name, "unsupported_parameter")
    return stream, options.boolean("include_usage")


def read_settings(fields: Fields, model: ServedModel, num_logprobs: int | None) -> SamplingSettings:
    """How tokens are chosen: the model's defaults, and what the request says."""
    given = {name: value for name in SAMPLING if (value := fields.take(name)) is not None}
    given["logit_bias"] = _bias(fields.take("logit_bias"), model.vocab_size)
    seed = fields.integer("seed", -(2**63), 2**63 - 1)
    given["seed"] = secrets.randbits(63) if seed is None else seed % 2**64
    for name, value in given.items():
        try:
            SamplingSettings(**{name: value})
        except ValueError as error:
            raise RequestError(400, str(error).removeprefix("request: "), name, "invalid_value") from None
    return dataclasses.replace(model.defaults, **given, num_logprobs=num_logprobs)


def _bias(value: Any, vocab_size: int) -> dict[int, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise wrong("logit_bias", "an object of token ids and numbers", value)
    for token in value:
        if not (token.isascii() and token.isdigit() and len(token) < 10 and int(token) < vocab_size):
            raise wrong("logit_bias", f"of token ids below {vocab_size}", token)
    return {int(token): bias for token, bias in value.items()}


def make_requests(
    prefix: str,
    prompts: Sequence[Sequence[int]],
    param: str,
    limit: int | None,
    fields: Fields,
    model: ServedModel,
    num_logprobs: int | None,
) -> tuple[str, tuple[Request, ...]]:
    """(id, a request for each choice). Choice k of a prompt draws with the seed + k.

    Args:
        prefix: of the id.
        param: the field that the prompts come from.
        limit: tokens of an answer at most; None is up to the last position.
    """
    num_choices = fields.integer("n", 1, MAX_CHOICES) or 1
    require_few(len(prompts) * num_choices, "n")
    for prompt in prompts:
        _require_room(prompt, param, limit, model)
    stop = fields.texts("stop", MAX_STOPS) or model.stop
    ignore_eos = fields.boolean("ignore_eos")
    settings = read_settings(fields, model, num_logprobs)
    name = f"{prefix}-{secrets.token_hex(12)}"
    requests = [
        Request(
            f"{name}-{number}-{choice}",
            tuple(prompt),
            dataclasses.replace(settings, seed=settings.seed + choice),
            limit,
            stop,
            model.eos_token_ids,
            ignore_eos,
        )
        for number, prompt in enumerate(prompts)
        for choice in range(num_choices)
    ]
    return name, tuple(requests)


def require_few(num_answers: int, param: str) -> None:
    """Raises: RequestError, if a request asks for more answers than are worth making."""
    if num_answers > MAX_ANSWERS:
        message = f"a request must ask for at most {MAX_ANSWERS} answers, got {num_answers}"
        raise RequestError(400, message, param, "invalid_value")


def _require_room(prompt: Sequence[int], param: str, limit: int | None, model: ServedModel) -> None:
    if len(prompt) > model.max_prompt_tokens:
        context = f"a prompt has at most {model.max_prompt_tokens}"
        raise too_long(param, f"{len(prompt)} tokens", model.positions, context)
    if limit is not None and len(prompt) + limit > model.positions:
        raise too_long(param, f"{len(prompt)} tokens", model.positions, f"{limit} new ones are asked for")

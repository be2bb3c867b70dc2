"""Log-probabilities as OpenAI's two forms write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from examples.llama2_13b.generate.request import TokenLogprobs
from examples.llama2_13b.serving.served_model import ServedModel


def of_conversation(logprobs: Sequence[TokenLogprobs], model: ServedModel) -> dict[str, Any]:
    """The field `logprobs` of a choice of `/v1/chat/completions`."""
    content = [
        {
            **_entry(each.token, each.logprob, model),
            "top_logprobs": [_entry(token, logprob, model) for token, logprob in each.top],
        }
        for each in logprobs
    ]
    return {"content": content, "refusal": None}


def of_completion(logprobs: Sequence[TokenLogprobs], offset: int, model: ServedModel) -> dict[str, Any]:
    """The field `logprobs` of a choice of `/v1/completions`. `offset`: characters of the answer before these tokens."""
    texts = [model.token_text([each.token]) for each in logprobs]
    starts = [offset + sum(map(len, texts[:number])) for number in range(len(texts))]
    return {
        "tokens": texts,
        "token_logprobs": [each.logprob for each in logprobs],
        "top_logprobs": [
            {model.token_text([token]): logprob for token, logprob in (*each.top, (each.token, each.logprob))}
            for each in logprobs
        ],
        "text_offset": starts,
    }


def _entry(token: int, logprob: float, model: ServedModel) -> dict[str, Any]:
    text = model.token_text([token])
    # A part of a character has no text of its own.
    return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}

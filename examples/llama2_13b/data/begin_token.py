"""The begin token that a tokenizer writes before a text: the post-processor of `tokenizer.json` says whether.

So it is in transformers 5.23.0 and in what calls it, vLLM among them. There `add_bos_token` of tokenizer_config.json
has no effect beside a tokenizer.json.
"""

from __future__ import annotations

from typing import Any

import tokenizers
from tokenizers import processors


def begin_with(backend: tokenizers.Tokenizer, token: str) -> None:
    """Texts begin with this token of the vocabulary from here on."""
    backend.post_processor = processors.TemplateProcessing(
        single=[token, "$A"],
        pair=[token, "$A", token, "$B:1"],
        special_tokens=[(token, backend.token_to_id(token))],
    )


def written_by(processor: dict[str, Any] | None) -> dict[str, str]:
    """The tokens that a post-processor writes before and after a text, by their roles."""
    if not processor:
        return {}
    if processor.get("type") == "Sequence":
        return {role: token for each in processor["processors"] for role, token in written_by(each).items()}
    pieces = processor.get("single") or [{}]
    ends = {"bos_token": pieces[0], "eos_token": pieces[-1]}
    return {role: piece["SpecialToken"]["id"] for role, piece in ends.items() if "SpecialToken" in piece}

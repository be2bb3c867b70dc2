"""The model that is served, as far as reading a request needs it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from examples.llama2_13b.data.conversation import Template, template_of
from examples.llama2_13b.data.tokenizer import Tokenizer
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.generate.generation_settings import GenerationSettings
from examples.llama2_13b.generate.request import SamplingSettings
from examples.llama2_13b.serving.errors import too_long

# A text with more is too long without being counted: encoding one of 1 MB takes 100 MB. English has four or five
# characters a token; the longest tokens of vocabularies, runs of spaces, have up to 128.
MAX_CHARACTERS_PER_TOKEN = 64


@dataclass(frozen=True)
class ServedModel:
    """
    Args:
        name: by which clients ask for it.
        tokenizer, template: how text and conversations become tokens.
        positions: of prompt and answer together at most.
        vocab_size: token ids are below it.
        defaults: how tokens are chosen where a request says nothing.
        eos_token_ids: an answer ends with the first of them.
        stop: an answer ends before the first of these texts, where a request names none.
        max_new_tokens: of an answer in a conversation where a request says nothing; None is up to the last position.
        max_prompt_tokens: longer ones are refused.
    """

    name: str
    tokenizer: Tokenizer
    template: Template | None
    positions: int
    vocab_size: int
    defaults: SamplingSettings
    eos_token_ids: tuple[int, ...]
    stop: tuple[str, ...]
    max_new_tokens: int | None
    max_prompt_tokens: int
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def from_folder(cls, folder: Path, name: str, max_prompt_tokens: int | None) -> ServedModel:
        """Read what stands beside the weights.

        Raises:
            ValueError, OSError: a file is missing or wrong; it is named.
        """
        config = LlamaConfig.from_json(folder / "config.json")
        settings = GenerationSettings.from_pretrained(folder, config)
        positions = min(config.max_position_embeddings, settings.max_length or config.max_position_embeddings)
        return cls(
            name,
            Tokenizer.from_pretrained(folder),
            template_of(folder),
            positions,
            config.vocab_size,
            settings.sampling(seed=0),
            settings.eos_token_ids,
            settings.stop_strings,
            settings.max_new_tokens,
            min(max_prompt_tokens or positions, positions - 1),
        )

    def require_short(self, texts: Sequence[str], param: str) -> None:
        """Raises: RequestError, if the texts together are too long for a prompt, whatever their tokens are."""
        num_characters, most = sum(map(len, texts)), self.max_prompt_tokens * MAX_CHARACTERS_PER_TOKEN
        if num_characters > most:
            raise too_long(param, f"{num_characters} characters", self.positions, f"a prompt has at most {most}")

    def token_text(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens)

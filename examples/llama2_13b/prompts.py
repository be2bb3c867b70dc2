"""What the model is asked: prompts from the command line, from lines of text, or from data lines with targets."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.llama2_13b import data
from examples.llama2_13b.chat_template import ChatTemplate
from examples.llama2_13b.data import Turn
from examples.llama2_13b.tokenizer import Tokenizer

DEFAULT = "请解释成语“温故而知新”的意思。"


@dataclass(frozen=True)
class Prompt:
    """A question, with the turns before it.

    Args:
        turns: what was said so far, as (source, target).
        question: to be answered.
        target: the answer that the data gives; "" if none.
        where: it comes from, for errors.
    """

    turns: tuple[Turn, ...]
    question: str
    target: str
    where: str

    @classmethod
    def from_example(cls, example: data.Example) -> Prompt:
        question, target = example.turns[-1]
        return cls(example.turns[:-1], question, target, example.where)

    @property
    def src(self) -> str | list[str]:
        return [*(source for source, _ in self.turns), self.question] if self.turns else self.question

    @property
    def tgt(self) -> str | list[str]:
        return [*(target for _, target in self.turns), self.target] if self.turns else self.target


def from_texts(texts: Sequence[str]) -> list[Prompt]:
    """Of the command line.

    Raises:
        ValueError: one is not Unicode; it is named.
    """
    for number, text in enumerate(texts, start=1):
        data.require_text(text, f"predict: prompt {number}")
    return [Prompt((), text, "", f"prompt {number}") for number, text in enumerate(texts, start=1)]


def from_file(path: Path) -> list[Prompt]:
    """Data lines of a .json or .jsonl file, as for training; of any other file each line that is not empty.

    Raises:
        ValueError, OSError: the file cannot be read, or a line is bad; it is named.
    """
    if path.suffix in (".json", ".jsonl"):
        prompts = [Prompt.from_example(example) for example in data.read_examples([path])]
    else:
        try:
            lines = path.read_text(encoding="utf-8").split("\n")  # splitlines would also cut at U+2028 or a form feed
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: must be text in UTF-8: {error}") from None
        prompts = [Prompt((), line, "", f"{path}:{n}") for n, line in enumerate(lines, start=1) if line.strip()]
    if not prompts:
        raise ValueError(f"{path}: must hold at least one prompt, got none")
    return prompts


def encode(
    prompts: Sequence[Prompt],
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    src_length: int | None,
    max_tokens: int,
    context: str,
) -> list[list[int]]:
    """Token ids of each prompt, as in training.

    Args:
        src_length: of a source's tokens the last so many are kept; all if None.
        max_tokens, context: a prompt must not be longer, and the error says why.

    Raises:
        ValueError: a prompt is longer; it is named.
    """
    encoded = []
    for prompt in prompts:
        length = src_length or sys.maxsize
        tokens = data.encode_prompt(list(prompt.turns), prompt.question, tokenizer, length, template)
        if len(tokens) > max_tokens:
            raise ValueError(
                f"predict: {prompt.where} must be at most {max_tokens} tokens long, got {len(tokens)}; {context}. "
                "Lower --max_length, or cut sources with --src_length"
            )
        encoded.append(tokens)
    return encoded

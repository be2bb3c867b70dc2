"""What the model is asked: prompts from the command line, from lines of text, or from data lines with targets."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.llama2_13b.data.conversation import Template
from examples.llama2_13b.data.samples import Example, Turn, fit, joined, read_examples
from examples.llama2_13b.data.tokenizer import Tokenizer
from examples.llama2_13b.io.remarks import say
from examples.llama2_13b.io.text import ENCODING, require_text

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
    def from_example(cls, example: Example) -> Prompt:
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
        require_text(text, f"predict: prompt {number}")
    return [Prompt((), text, "", f"prompt {number}") for number, text in enumerate(texts, start=1)]


def from_file(path: Path) -> list[Prompt]:
    """Data lines of a .json or .jsonl file, as for training; of any other file each line that is not empty.

    Raises:
        ValueError, OSError: the file cannot be read, or a line is bad; it is named.
    """
    if path.suffix in (".json", ".jsonl"):
        prompts = [Prompt.from_example(example) for example in read_examples([path])]
    else:
        try:
            lines = path.read_text(encoding=ENCODING).split("\n")  # splitlines would also cut at U+2028 or a form feed
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: must be text in UTF-8: {error}") from None
        prompts = [Prompt((), line, "", f"{path}:{n}") for n, line in enumerate(lines, start=1) if line.strip()]
        for prompt in prompts:
            require_text(prompt.question, f"{prompt.where}:")
    if not prompts:
        raise ValueError(f"{path}: must hold at least one prompt, got none")
    return prompts


def encode(
    prompts: Sequence[Prompt],
    tokenizer: Tokenizer,
    template: Template | None,
    src_length: int | None,
    max_tokens: int,
    context: str,
    cure: str = "Lower --max_length",
) -> list[list[int]]:
    """Token ids of each prompt, as in training: turns that do not fit go from the front, and their number is said.

    Args:
        src_length: a source is shortened to so many tokens; not at all if None.
        max_tokens, context, cure: a prompt must not be longer; the error says why, and what helps beside src_length.

    Raises:
        ValueError: a question is longer, a prompt has no token, or the template refuses the prompt; it is named.
    """
    encoded = []
    num_shortened = num_turns = 0
    for prompt in prompts:
        turns = [*prompt.turns, (prompt.question, None)]
        try:
            fitted, dropped = fit(turns, tokenizer, src_length or sys.maxsize, max_tokens, template)
        except ValueError as error:
            raise ValueError(f"predict: {prompt.where}: {error}") from None
        tokens = joined(fitted)
        if not tokens:
            raise ValueError(f"predict: {prompt.where} must be at least one token long, got none. Write a text")
        if len(tokens) > max_tokens:
            raise ValueError(
                f"predict: {prompt.where} must be at most {max_tokens} tokens long, got {len(tokens)}; {context}. "
                f"{cure}, or cut sources with --src_length"
            )
        encoded.append(tokens)
        num_shortened += dropped.source > 0
        num_turns += dropped.turns
    if num_shortened or num_turns:
        lost = f"{num_shortened} sources were shortened (--src_length), {num_turns} turns left out ({context})"
        say(f"prompts: {len(prompts)}; {lost}", sys.stderr)
    return encoded

"""Hugging Face's chat templates: a Jinja program that writes a whole conversation as one text.

`chat_template.jinja`, or `chat_template` in `tokenizer_config.json`. The program comes with the model, so it runs in
Jinja's sandbox. What it writes equals transformers' `apply_chat_template(messages, tokenize=False)`.

Source: transformers 5.23.0, "Writing a chat template", for what a program may use.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from examples.llama2_13b.data.tokenizer import Part

Message = Mapping[str, Any]  # role and content, and whatever else a template reads
Span = tuple[int, int]

ASSISTANT = "assistant"
# Halves of surrogate pairs, which are in no Unicode text: around names of control tokens that a message holds, after
# characters with which one begins, and around what stands between {% generation %} and {% endgeneration %}.
_NAME, _NAME_END, _ANSWER, _ANSWER_END = "\ud800", "\ud801", "\ud802", "\ud803"


@dataclass(frozen=True)
class JinjaTemplate:
    """A program, and what it is given beside the messages.

    Args:
        text: the program.
        tokens: `bos_token`, `eos_token` and other tokens by their role.
        where: it stands, for errors.
        now: what `strftime_now` tells; the clock if None.

    Raises:
        ValueError: the text is not a Jinja template.
    """

    text: str
    tokens: Mapping[str, str]
    where: str
    now: datetime | None = None

    def __post_init__(self) -> None:
        try:
            _compiled(self.text)
        except Exception as error:  # too deep or too long a number is Python's error, not Jinja's
            raise ValueError(f"{self.where}: not a Jinja template: {error}") from None

    def at_once(self) -> JinjaTemplate:
        """The same template with the clock stopped: a text that is compared with another must tell the same time."""
        return self if self.now else dataclasses.replace(self, now=datetime.now())

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The conversation as one text; with add_generation_prompt up to where the assistant goes on.

        Raises:
            ValueError: the template refuses the messages (`raise_exception`) or fails; its own words are in the text.
        """
        return _without_answers(self._run(messages, add_generation_prompt))[0]

    def parts(self, messages: Sequence[Message], names: Iterable[str], add_generation_prompt: bool) -> list[Part]:
        """The same text in parts: names of control tokens that a message holds are text, all others are meant.

        Args:
            names: of the control tokens.
        """
        written, _ = self.at_once()._written(messages, tuple(names), add_generation_prompt)
        return _split(written)

    def answers(self, messages: Sequence[Message], names: Iterable[str]) -> list[tuple[Part, bool]]:
        """The parts of a conversation without generation prompt, and whether each is what the assistant says.

        That is what stands in `{% generation %}`. In a template without it, it is what the text gains by an
        assistant's message beyond the prompt for it, up to its last control token.

        Raises:
            ValueError: the template fails, or the answers cannot be told by either.
        """
        names, still = tuple(names), self.at_once()
        written, spans = still._written(messages, names, False)
        if not spans:
            spans = still._by_prefixes(messages, names, written)
        borders = [0, *(border for span in spans for border in span), len(written)]
        pieces = [written[begin:end] for begin, end in zip(borders, borders[1:], strict=False)]
        return [(part, number % 2 == 1) for number, piece in enumerate(pieces) for part in _split(piece)]

    def _written(self, messages: Sequence[Message], names: tuple[str, ...], prompt: bool) -> tuple[str, list[Span]]:
        """(text with marks in what messages say, places of what {% generation %} encloses).

        Marks after every character with which a name begins also part a name that the template puts together, as
        `lower` does of `</S>`. A template that reads such characters gets marks around whole names only.
        """
        text, spans = _without_answers(self._run(messages, prompt))
        read = self._only_read(messages, names, prompt, text)
        for begins in (True, False):
            marked = _in_strings(_marker(names, frozenset(read), begins), list(messages))
            if marked == list(messages):
                return text, spans
            if (found := self._tried(marked, prompt)) and _plain(found[0]) == text:
                return found
        rule = "written as they are where they name a control token, got another text. Change the message"
        raise ValueError(f"{self.where}: messages must be {rule}, or the template")

    def _only_read(self, messages: Sequence[Message], names: tuple[str, ...], prompt: bool, text: str) -> set[str]:
        """Names in messages that the template never writes, as `</think>` where it splits: they may come twice.

        It must know such a name. So a message with hundreds of names costs no more.
        """
        known = tuple(name for name in names if name in self.text or name in self.tokens.values())
        found = set()
        for name in {name for said in strings_of(messages) for name in _names(known).findall(said)}:
            twice = _in_strings(functools.partial(re.sub, re.escape(name), lambda one: 2 * one[0]), list(messages))
            if (other := self._tried(twice, prompt)) and other[0] == text:
                found.add(name)
        return found

    def _tried(self, messages: Sequence[Message], prompt: bool) -> tuple[str, list[Span]] | None:
        """As `_without_answers`; None if the template refuses these messages."""
        try:
            return _without_answers(self._run(messages, prompt))
        except ValueError:
            return None

    def _by_prefixes(self, messages: Sequence[Message], names: tuple[str, ...], whole: str) -> list[Span]:
        spans = []
        for number, message in enumerate(messages):
            if message["role"] != ASSISTANT:
                continue
            before, until = messages[:number], messages[: number + 1]
            prompt = self._written(before, names, True)[0] if before else ""
            answered = self._written(until, names, False)[0]
            said = answered[len(prompt) :]
            is_told = whole.startswith(answered) and answered.startswith(prompt)
            if not is_told or message["content"].strip() not in _plain(said):
                raise ValueError(
                    f"{self.where}: what the assistant says in message {number + 1} must follow the prompt for it, got "
                    "another text there. Put {% generation %} and {% endgeneration %} around it in the template"
                )
            spans.append((len(prompt), len(prompt) + _end(said, names)))
        return spans

    def _run(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        given = [{name: value for name, value in message.items() if value is not None} for message in messages]
        try:
            text: str = _compiled(self.text).render(
                messages=given,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                strftime_now=(self.now or datetime.now()).strftime,
                **self.tokens,
            )
        except Exception as error:  # a program can fail in any way
            raise ValueError(f"{self.where}: {error}") from None
        return text


def _without_answers(text: str) -> tuple[str, list[Span]]:
    """The text without the marks around answers, and where the answers are."""
    spans, plain, begin = [], "", 0
    for piece in re.split(f"([{_ANSWER}{_ANSWER_END}])", text):
        if piece == _ANSWER:
            begin = len(plain)
        elif piece == _ANSWER_END:
            spans.append((begin, len(plain)))
        else:
            plain += piece
    return plain, spans


def _plain(text: str) -> str:
    return text.replace(_NAME, "").replace(_NAME_END, "")


def _split(text: str) -> list[Part]:
    """At the marks: what a pair encloses is text. A mark alone, which a template cut off, still parts the text."""
    pieces = re.split(f"{_NAME}([^{_NAME}{_NAME_END}]*){_NAME_END}", text)
    parts = [(piece, number % 2 == 0) for number, whole in enumerate(pieces)
             for piece in re.split(f"[{_NAME}{_NAME_END}]", whole)]  # fmt: skip
    return [part for part in parts if part[0]]


def _end(said: str, names: tuple[str, ...]) -> int:
    """Without the space between the control token that ends an answer and the next message."""
    stripped = said.rstrip()
    return len(stripped) if stripped.endswith(names) else len(said)


def strings_of(value: Any) -> Iterator[str]:
    """Every text in a message or in several, those that name a field included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for pair in value.items() for one in pair for text in strings_of(one))
    elif isinstance(value, list | tuple):
        yield from (text for one in value for text in strings_of(one))


def _in_strings(change: Callable[[str], str], value: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_in_strings(change, key): _in_strings(change, one) for key, one in value.items()}
    return [_in_strings(change, one) for one in value] if isinstance(value, list | tuple) else value


@functools.lru_cache(maxsize=8)
def _names(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")


@functools.lru_cache(maxsize=8)
def _marker(names: tuple[str, ...], read: frozenset[str], begins: bool) -> Callable[[str], str]:
    """Puts marks around names of control tokens, and at an edge where a piece of one could meet the rest of it.

    Args:
        read: names that get no marks.
        begins: also after each other character with which a name begins.
    """
    first = "|".join(sorted({re.escape(name[0]) for name in names})) if begins else ""
    found = re.compile(f"({_names(names).pattern})" + (f"|{first}" if first else ""))
    heads = tuple({name[:length] for name in names for length in range(1, len(name))})
    tails = tuple({name[-length:] for name in names for length in range(1, len(name))})
    nothing = _NAME + _NAME_END

    def marks(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0] + nothing
        return match[0] if match[0] in read else _NAME + match[0] + _NAME_END

    def mark(text: str) -> str:
        return nothing * text.startswith(tails) + found.sub(marks, text) + nothing * text.endswith(heads)

    return mark


class _Generation(Extension):
    """`{% generation %}` ... `{% endgeneration %}`: what the assistant says."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_enclosed"), [], [], body).set_lineno(line)

    def _enclosed(self, caller: Callable[[], str]) -> str:
        return f"{_ANSWER}{caller()}{_ANSWER_END}"


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, **how: Any) -> str:
    """Jinja's own escapes what HTML does not allow."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **how)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    return environment


_jinja = _environment()


@functools.lru_cache(maxsize=8)
def _compiled(text: str) -> jinja2.Template:
    return _jinja.from_string(text)

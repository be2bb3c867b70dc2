"""Samples from JSON lines: `{"src": text, "tgt": text}`, or lists of equal length, one entry a turn."""

from __future__ import annotations

import dataclasses
import json
import sys
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.llama2_13b.data.chat_template import ChatTemplate
from examples.llama2_13b.data.conversation import EncodedTurn, Template, begun, ended, fit_turns
from examples.llama2_13b.data.jinja_template import JinjaTemplate
from examples.llama2_13b.data.tokenizer import Tokenizer
from examples.llama2_13b.io.text import parse_line, read_lines, require_text

IGNORED = -100  # the label of a token that is no target
Turn = tuple[str, str]
Tokens = Sequence[int] | NDArray[np.int64]


@dataclass(frozen=True)
class Example:
    """A line: its turns of (source, target), and the file and line that it stands on."""

    turns: tuple[Turn, ...]
    where: str


@dataclass(frozen=True)
class Dropped:
    """What of a conversation did not fit: whole turns, and tokens of sources and of the last target."""

    turns: int = 0
    source: int = 0
    target: int = 0


@dataclass(frozen=True)
class Sample:
    """A text in tokens: labels[i] is the token after input_ids[i], or IGNORED where that is not to be learned."""

    input_ids: Tokens
    labels: Tokens
    dropped: Dropped = Dropped()

    def __len__(self) -> int:
        return len(self.input_ids)


def split_files(dataset: str | Path, split: str) -> list[Path]:
    """`train.json` of the data set's folder, or the .json and .jsonl files of its folder `train`; [] without either."""
    folder = Path(dataset)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: must be a folder with train.json, got no such folder")
    file = folder / f"{split}.json"
    if file.exists():
        return [file]
    return sorted(path for path in (folder / split).glob("*") if path.suffix in (".json", ".jsonl"))


def read_examples(files: list[Path]) -> list[Example]:
    """Every line of the files; empty lines are passed over.

    Raises:
        ValueError: a line is not as the module says. The text names file and line.
    """
    return [example for file in files for example in _read(file)]


def _read(file: Path) -> Iterator[Example]:
    for where, line in read_lines(file, "a JSON object"):
        if line.strip():
            yield Example(_turns(parse_line(line, where), where), where)


def _turns(fields: dict[str, Any], where: str) -> tuple[Turn, ...]:
    for name in ("src", "tgt"):
        if name not in fields:
            raise ValueError(f'{where}: must have "src" and "tgt", got {", ".join(fields) or "no field"}')
        value = fields[name]
        texts = value if isinstance(value, list) else [value]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{where}: {name} must be a text or a list of texts, got {json.dumps(value)[:60]}")
        for text in texts:
            require_text(text, f"{where}: {name}")
    src, tgt = fields["src"], fields["tgt"]
    if isinstance(src, list) != isinstance(tgt, list):
        raise ValueError(f"{where}: src and tgt must be both texts or both lists, got {_kind(src)} and {_kind(tgt)}")
    src, tgt = ([value] if isinstance(value, str) else value for value in (src, tgt))
    if len(src) != len(tgt):
        raise ValueError(f"{where}: src and tgt must have as many turns, got {len(src)} and {len(tgt)}")
    if not all((source + target).strip() for source, target in zip(src, tgt, strict=True)):
        raise ValueError(f"{where}: src and tgt must not both be empty, got neither question nor answer. Remove them")
    return tuple(zip(src, tgt, strict=True))


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else "a text"


def encode(
    example: Example, tokenizer: Tokenizer, src_length: int, max_length: int, template: Template | None = None
) -> Sample:
    """The example in at most max_length tokens before the shift by one.

    Whole turns go from the front until it fits; the last stays, and the system text. The last target keeps what then
    fits, and its end token only when it is whole.

    Raises:
        ValueError: there is nothing to learn in a turn, or the template refuses the line.
    """
    for number, (_, answer) in enumerate(example.turns, start=1):
        if not answer.strip():
            turn = f" of turn {number}" if len(example.turns) > 1 else ""
            raise ValueError(f"{example.where}: tgt{turn} must hold text to learn, got {answer!r}. Remove the line")
    try:
        turns, dropped = fit(example.turns, tokenizer, src_length, max_length, template)
    except ValueError as error:
        raise ValueError(f"{example.where}: {error}") from None
    source, target = turns[-1]
    room = max_length - sum(len(source) + len(target) for source, target in turns[:-1]) - len(source)
    turns[-1] = source, target[:room]
    ids = [token for source, target in turns for token in (*source, *target)]
    labels = [label for source, target in turns for label in (*[IGNORED] * len(source), *target)]
    return Sample(ids[:-1], labels[1:], dataclasses.replace(dropped, target=len(target) - len(turns[-1][1])))


def encode_prompt(
    turns: list[Turn],
    question: str,
    tokenizer: Tokenizer,
    src_length: int,
    template: Template | None = None,
    max_length: int = sys.maxsize,
) -> list[int]:
    """What the model is given to answer: the turns so far as in training, then the question."""
    fitted, _ = fit([*turns, (question, None)], tokenizer, src_length, max_length, template)
    return joined(fitted)


def fit(
    turns: Sequence[tuple[str, str | None]],
    tokenizer: Tokenizer,
    src_length: int,
    max_length: int,
    template: Template | None,
) -> tuple[list[EncodedTurn], Dropped]:
    """The last turns that fit into max_length tokens together, at least one. The first of them has the system text.

    A source is shortened to src_length tokens, begin token and template included: its text loses words at the front.
    """
    if isinstance(template, JinjaTemplate):
        encoded, number, shortened = fit_turns(turns, tokenizer, src_length, max_length, template)
        return encoded, Dropped(turns=number, source=shortened)
    later = [_encode_turn(turn, False, tokenizer, src_length, template) for turn in turns[1:]]
    for number, turn in enumerate(turns):
        kept = [_encode_turn(turn, True, tokenizer, src_length, template), *later[number:]]
        if sum(len(source) + len(target) for source, target, _ in kept) <= max_length:
            break
    dropped = Dropped(turns=number, source=sum(shortened for _, _, shortened in kept))
    return [(source, target) for source, target, _ in kept], dropped


def joined(turns: Iterable[EncodedTurn]) -> list[int]:
    return [token for source, target in turns for token in (*source, *target)]


def _encode_turn(
    turn: tuple[str, str | None], first: bool, tokenizer: Tokenizer, src_length: int, template: ChatTemplate | None
) -> tuple[list[int], list[int], int]:
    """(source, target, tokens by which the source was shortened); no target without an answer."""
    question, answer = turn
    source = _encode_source(question, first, tokenizer, template)
    length = len(source)
    if length > src_length:
        source = _shortened(question, first, tokenizer, src_length, template)
    return source, [] if answer is None else _encode_target(answer, tokenizer, template), length - len(source)


def _encode_source(question: str, first: bool, tokenizer: Tokenizer, template: ChatTemplate | None) -> list[int]:
    """With the tokenizer's begin, before each turn without a template, else before the conversation."""
    if template is None:
        return [*tokenizer.begin, *tokenizer.encode(question)]
    source = tokenizer.encode_parts(template.render((question, ""), first)[0])
    return begun(source, tokenizer) if first else source


def _encode_target(answer: str, tokenizer: Tokenizer, template: ChatTemplate | None) -> list[int]:
    """Ends with the end token, unless the template writes it."""
    if template is None:
        return [*tokenizer.encode(answer), tokenizer.eos_token_id]
    return ended(tokenizer.encode_parts(template.render(("", answer), False)[1]), tokenizer)


def _shortened(
    question: str, first: bool, tokenizer: Tokenizer, src_length: int, template: ChatTemplate | None
) -> list[int]:
    """The source of the longest end of the question with which it fits; what the template writes stays whole."""
    starts = [*tokenizer.starts(question), len(question)]

    def source(number: int) -> list[int]:
        return _encode_source(question[starts[number] :], first, tokenizer, template)

    if (least := len(source(-1))) > src_length:
        rule = f"at least {least}, the tokens of the chat template alone"
        raise ValueError(f"data: src_length must be {rule}, got {src_length}. Raise --src_length")
    return source(bisect_left(range(len(starts)), True, key=lambda number: len(source(number)) <= src_length))


def describe_dropped(samples: Sequence[Sample]) -> str:
    """How many samples do not hold all of their line, and what is missing."""
    cut = [sample.dropped for sample in samples if sample.dropped != Dropped()]
    if not cut:
        return f"0 of {len(samples)}"
    turns, source, target = (sum(getattr(each, name) for each in cut) for name in ("turns", "source", "target"))
    return f"{len(cut)} of {len(samples)}; left out {source} tokens of sources, {target} of targets, {turns} turns"

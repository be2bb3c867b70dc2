"""Samples from JSON lines: `{"src": text, "tgt": text}`, or lists of equal length, one entry a turn."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.llama2_13b.chat_template import ChatTemplate
from examples.llama2_13b.tokenizer import Tokenizer

IGNORED = -100  # the label of a token that is no target
Turn = tuple[str, str]


@dataclass(frozen=True)
class Example:
    """A line: its turns of (source, target), and the file and line that it stands on."""

    turns: tuple[Turn, ...]
    where: str


@dataclass(frozen=True)
class Sample:
    """A line in tokens: labels[i] is the token after input_ids[i], or IGNORED where that is not to be learned."""

    input_ids: list[int]
    labels: list[int]

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
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                where = f"{file}:{number}"
                yield Example(_turns(_parse(line, where), where), where)


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        fields = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: must be a JSON object, got {line.strip()[:60]!r}; {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{where}: must be a JSON object, got {type(fields).__name__}")
    return fields


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
    if isinstance(src, str):
        return ((src, tgt),)
    if len(src) != len(tgt):
        raise ValueError(f"{where}: src and tgt must have as many turns, got {len(src)} and {len(tgt)}")
    return tuple(zip(src, tgt, strict=True))


def require_text(text: str, where: str) -> None:
    """JSON and command lines can hold halves of surrogate pairs, which no tokenizer takes.

    Raises:
        ValueError: the text has one.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} must be Unicode text, got {ascii(text)[:60]}; {error.reason}") from None


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else "a text"


def encode(
    example: Example, tokenizer: Tokenizer, src_length: int, max_length: int, template: ChatTemplate | None = None
) -> Sample:
    """The example in at most max_length tokens before the shift by one.

    Whole turns go from the front until it fits; the last stays. A source keeps its last src_length tokens, begin token
    included; the last target keeps what then fits, and its end token only when it is whole.
    """
    turns = [_encode_turn(turn, index == 0, tokenizer, template) for index, turn in enumerate(example.turns)]
    turns = [(_keep_end(source, src_length, tokenizer), target) for source, target in turns]
    while len(turns) > 1 and sum(len(source) + len(target) for source, target in turns) > max_length:
        del turns[0]
    source, target = turns[-1]
    turns[-1] = source, target[: max_length - len(source)] if len(turns) == 1 else target
    ids = [token for source, target in turns for token in (*source, *target)]
    labels = [label for source, target in turns for label in (*[IGNORED] * len(source), *target)]
    return Sample(ids[:-1], labels[1:])


def encode_prompt(
    turns: list[Turn], question: str, tokenizer: Tokenizer, src_length: int, template: ChatTemplate | None = None
) -> list[int]:
    """What the model is given to answer: the turns so far as in training, then the question."""
    asked = [*turns, (question, "")]
    encoded = [_encode_turn(turn, index == 0, tokenizer, template) for index, turn in enumerate(asked)]
    encoded = [(_keep_end(source, src_length, tokenizer), target) for source, target in encoded]
    return [token for source, target in encoded for token in (*source, *target)][: -len(encoded[-1][1])]


def _encode_turn(
    turn: Turn, first: bool, tokenizer: Tokenizer, template: ChatTemplate | None
) -> tuple[list[int], list[int]]:
    bos, eos = [tokenizer.bos_token_id], [tokenizer.eos_token_id]
    if template is None:
        source, target = tokenizer.encode(turn[0]), tokenizer.encode(turn[1])
    else:
        source, target = (tokenizer.encode(text, special=True) for text in template.render(turn, first))
        bos = [] if source[:1] == bos else bos
        eos = [] if target[-1:] == eos else eos
    return bos + source, target + eos


def _keep_end(source: list[int], src_length: int, tokenizer: Tokenizer) -> list[int]:
    if len(source) <= src_length:
        return source
    return [tokenizer.bos_token_id, *source[len(source) - src_length + 1 :]]

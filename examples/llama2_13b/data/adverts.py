"""The example's data, written from texts/grammar.json: what is advertised, and a sentence that names all of it.

    python -m examples.llama2_13b.data.adverts

A prompt is `type#tea*pack#tin*note#honey*origin#Assam`: attributes in any order after the type. The attribute that
comes first chooses the sentence. No combination of values in dev.json occurs in train.json; every value does.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # python path/to/this/file, from any folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import repository  # noqa: F401

from examples.llama2_13b.io import atomic, flags
from examples.llama2_13b.io.flags import flag

PROGRAM = "examples.llama2_13b.data.adverts"
DATA = Path(__file__).parents[1] / "texts"
NUM_TRAIN, NUM_DEV = 100, 4  # combinations of each product; there are 216
CONVERSATION_EVERY = 20  # of the training lines, one with a second turn
AGAIN = {"type": "say it another way", "类型": "换个说法"}


@dataclass(frozen=True)
class AdvertsFlags:
    output_dir: str = flag("folder for train.json and dev.json", str(DATA))


@dataclass(frozen=True)
class Product:
    """An entry of the grammar.

    Args:
        attributes: name -> the values it can have; the first is the type and has one.
        sentences: name of an attribute -> the sentence for prompts in which it comes first, with {names} of attributes.
    """

    attributes: dict[str, list[str]]
    sentences: dict[str, str]

    def line(self, values: tuple[str, ...], generator: random.Random, conversation: bool) -> dict[str, object]:
        """A line of the data: the attributes shuffled, and their sentence; in a conversation another one follows."""
        named = dict(zip(self.attributes, values, strict=True))
        kind, *others = self.attributes
        generator.shuffle(others)
        src = "*".join(f"{name}#{named[name]}" for name in (kind, *others))
        first, second = (self.sentences[name].format_map(named) for name in others[:2])
        return {"src": [src, AGAIN[kind]], "tgt": [first, second]} if conversation else {"src": src, "tgt": first}


def adverts(flags: AdvertsFlags) -> int:
    """Write train.json and dev.json, the same in every run."""
    generator = random.Random(0)
    train: list[dict[str, object]] = []
    dev: list[dict[str, object]] = []
    for product in (Product(**entry) for entry in json.loads((DATA / "grammar.json").read_text(encoding="utf-8"))):
        combinations = list(itertools.product(*product.attributes.values()))
        generator.shuffle(combinations)
        dev += [product.line(values, generator, False) for values in combinations[:NUM_DEV]]
        for number, values in enumerate(combinations[NUM_DEV : NUM_DEV + NUM_TRAIN]):
            train.append(product.line(values, generator, number % CONVERSATION_EVERY == 0))
    folder = Path(flags.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in (("train", train), ("dev", dev)):
        generator.shuffle(lines)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        atomic.write_file(folder / f"{name}.json", text.encode())
        print(f"{folder / name}.json: {len(lines)} lines")
    return 0


def num_named(src: str, text: str) -> tuple[int, int]:
    """(how many values of the prompt's attributes stand in the text, how many there are); case does not count."""
    values = [attribute.partition("#")[2] for attribute in src.split("*")]
    return sum(value.casefold() in text.casefold() for value in values), len(values)


if __name__ == "__main__":
    flags.main(AdvertsFlags, adverts, PROGRAM)

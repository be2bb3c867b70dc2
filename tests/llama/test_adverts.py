"""The shipped data is what the grammar says, and its evaluation prompts are unseen."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest

from examples.llama2_13b.data.adverts import AGAIN, AdvertsFlags, Product, adverts, num_named
from tests.llama.conftest import DATA

PRODUCTS = [Product(**entry) for entry in json.loads((DATA / "grammar.json").read_text(encoding="utf-8"))]


def lines(split):
    return [json.loads(line) for line in (DATA / f"{split}.json").read_text(encoding="utf-8").splitlines()]


def prompts(split):
    return [line["src"] if isinstance(line["src"], str) else line["src"][0] for line in lines(split)]


def test_the_shipped_files_are_what_the_command_writes(tmp_path, capsys):
    assert adverts(AdvertsFlags(str(tmp_path / "new"))) == 0
    for name in ("train.json", "dev.json"):
        assert (tmp_path / "new" / name).read_bytes() == (DATA / name).read_bytes()
    assert "train.json: 1600 lines" in capsys.readouterr().out


def test_no_combination_of_the_evaluation_is_trained_on_but_every_value_is():
    train, dev = ([frozenset(prompt.split("*")) for prompt in prompts(split)] for split in ("train", "dev"))
    assert not set(train) & set(dev)
    assert set().union(*dev) <= set().union(*train)
    assert len(set(dev)) == len(dev)


@pytest.mark.parametrize("split", ["train", "dev"])
def test_every_sentence_names_every_attribute(split):
    for line in lines(split):
        prompt = line["src"] if isinstance(line["src"], str) else line["src"][0]
        sentences = [line["tgt"]] if isinstance(line["tgt"], str) else line["tgt"]
        assert all(num_named(prompt, sentence) == (4, 4) for sentence in sentences), line


def test_a_conversation_asks_for_another_sentence():
    conversations = [line for line in lines("train") if isinstance(line["src"], list)]
    assert Counter(line["src"][1] for line in conversations) == dict.fromkeys(AGAIN.values(), 40)
    assert all(line["tgt"][0] != line["tgt"][1] for line in conversations)


@pytest.mark.parametrize("product", PRODUCTS, ids=lambda product: next(iter(product.attributes.values()))[0])
def test_a_sentence_names_nothing_by_chance(product):
    """Values are not parts of each other, nor of a sentence's own words; what a prompt names first comes first."""
    kind, *others = product.attributes
    assert list(product.sentences) == others
    values = [value.casefold() for values in product.attributes.values() for value in values]
    assert not [(one, other) for one in values for other in values if one != other and one in other]
    for name, sentence in product.sentences.items():
        slots = re.findall(r"{(.*?)}", sentence)
        assert slots[0] == name and sorted(slots) == sorted(others)
        words = re.sub(r"{.*?}", "|", sentence).casefold()
        assert [value for value in values if value in words] == [product.attributes[kind][0]]


def test_named_attributes_are_counted_whatever_their_case():
    assert num_named("type#tea*pack#tin*origin#Assam", "TEA from assam.") == (2, 3)
    assert num_named("type#tea*pack#tin*origin#Assam", "") == (0, 3)

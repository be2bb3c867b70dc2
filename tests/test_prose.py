"""README, documents and docstrings can be read once, quickly: their sentences, paragraphs and lines are short."""

from __future__ import annotations

import importlib
import inspect

import pytest

from tests import prose

PUBLIC = "fusionkit fusionkit.backend fusionkit.capability fusionkit.nn fusionkit.parallel fusionkit.spec".split()


@pytest.mark.parametrize("name", prose.PAGES)
def test_a_page_is_easy_to_read(name):
    page = (prose.ROOT / name).read_text()
    assert not prose.faults(page)
    titles = [line for _, line in prose.prose_lines(page) if line.startswith("# ")]
    assert len(titles) == 1 and page.startswith(titles[0])
    assert name == "README.md" or titles[0].endswith("?"), "a page answers one question, which is its title"


@pytest.mark.parametrize("module", PUBLIC)
def test_a_docstring_has_no_long_sentence(module):
    public = vars(importlib.import_module(module))
    ours = {n: each for n, each in public.items() if str(getattr(each, "__module__", "")).startswith("fusionkit")}
    found = {name: prose.long_sentences(inspect.getdoc(each) or "") for name, each in ours.items() if name[0] != "_"}
    assert found and not {name: sentences for name, sentences in found.items() if sentences}


def test_what_is_too_long_is_found():
    long = "word " * 31 + "ends."
    assert prose.faults(f"Short one.\n\n{'Five words are in here. ' * 5}") == ["3: a line of 120 columns"]
    assert prose.long_sentences(f"Args:\n    x: one.\n    y: {long}\n") == [f"y: {long}"]
    assert prose.faults("Two words. " * 6) == ["1: a paragraph of 6 sentences"]
    assert prose.faults("\n".join(long.split()))[0].startswith("1: a sentence of 32 words: word")
    assert prose.faults("- " + "\n".join(("word " * 17).split()) + ".") == ["a mean of 17.0 words a sentence"]
    assert not prose.faults(f"| {long} |\n\n```\n{long}\n```\n\n    {long}\n\nAfter `{long[:80]}` [this](x).")

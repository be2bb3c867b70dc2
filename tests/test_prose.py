"""README, documents and docstrings can be read once, quickly: their sentences, paragraphs and lines are short."""

from __future__ import annotations

import pytest

from tests import prose

TO_REWRITE = {"docs/adding_a_backend.md", "docs/adding_an_op.md"}


@pytest.mark.parametrize("name", [name for name in prose.PAGES if name not in TO_REWRITE])
def test_a_page_is_easy_to_read(name):
    page = (prose.ROOT / name).read_text()
    assert not prose.faults(page)
    titles = [line for _, line in prose.prose_lines(page) if line.startswith("# ")]
    assert len(titles) == 1 and page.startswith(titles[0])


def test_what_is_too_long_is_found():
    long = "word " * 31 + "ends."
    assert prose.faults(f"Short one.\n\n{'Five words are in here. ' * 5}") == ["3: a line of 120 columns"]
    assert prose.faults("Two words. " * 6) == ["1: a paragraph of 6 sentences"]
    assert prose.faults("\n".join(long.split()))[0].startswith("1: a sentence of 32 words: word")
    assert prose.faults("- " + "\n".join(("word " * 17).split()) + ".") == ["a mean of 17.0 words a sentence"]
    assert not prose.faults(f"| {long} |\n\n```\n{long}\n```\n\n    {long}\n\nAfter `{long[:80]}` [this](x).")

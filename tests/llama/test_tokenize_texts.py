"""Texts to token files: what is a document, what it becomes, and what is refused with file and line."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time

import pytest

from examples.llama2_13b.create import CreateFlags, create
from examples.llama2_13b.data.documents import read_documents
from examples.llama2_13b.data.token_files import TokenFiles
from examples.llama2_13b.data.tokenizer import Tokenizer
from examples.llama2_13b.tokenize_texts import TokenizeFlags, tokenize_texts
from tests.hanging import HANGING
from tests.llama.conftest import DATA, EXAMPLE
from tests.llama.test_token_files import documents_of

BOS, EOS = 1, 2


@pytest.fixture
def made(tiny_folder, tmp_path):
    """The documents that the tool makes of a file or folder."""

    def make(path, name="all", **flags):
        prefix = tmp_path / "tokens" / name
        assert tokenize_texts(TokenizeFlags(str(tiny_folder), str(path), str(prefix), **flags)) == 0
        return documents_of(TokenFiles(prefix))

    return make


def test_every_text_comes_back(made, tiny_folder, tmp_path, capsys):
    texts = ["Hello world", "温故而知新\r\n可以为师", "</s> is text, as <s> is", "  spaces  ", "a" * 5000]
    (tmp_path / "texts.jsonl").write_text("\n\n".join(json.dumps({"text": text}) for text in texts))
    tokenizer = Tokenizer.from_pretrained(tiny_folder)
    found = made(tmp_path / "texts.jsonl")
    assert found == [[BOS, *tokenizer.encode(text), EOS] for text in texts]
    assert [tokenizer.decode(ids) for ids in found] == texts
    assert f"all.bin: 5 documents, {sum(map(len, found))} tokens" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "tokens").iterdir()) == ["all.about.json", "all.bin", "all.idx"]


def test_the_shipped_data_are_read_by_any_field(made):
    lines = (DATA / "dev.json").read_text(encoding="utf-8").splitlines()
    assert len(made(DATA / "dev.json", json_key="tgt")) == len(lines)


def documents(path, json_key="text", doc_spliter=""):
    seen = []
    found = list(read_documents(path, json_key, doc_spliter, seen.append))
    assert sum(seen) == path.stat().st_size
    return [(where.rpartition("/")[2], text) for where, text in found]


def test_an_empty_line_ends_a_document_of_a_text_file(tmp_path):
    path = tmp_path / "book.txt"
    path.write_bytes(b"\xef\xbb\xbf\nOne.\n  Two.\n \t\n\nThree.\r\nFour.\r\n\r\nFive")
    assert documents(path) == [
        ("book.txt:2", "One.\n  Two."),
        ("book.txt:6", "Three.\r\nFour."),
        ("book.txt:9", "Five"),
    ]


def test_another_line_may_end_a_document(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("One.\n\nTwo.\n=== \nThree.\n===\n===\n")
    assert documents(path, doc_spliter="===") == [("book.txt:1", "One.\n\nTwo."), ("book.txt:5", "Three.")]


def test_lists_of_texts_are_paragraphs_and_blank_documents_are_passed_over(tmp_path):
    path = tmp_path / "texts.json"
    path.write_text('{"body": ["a", "b"], "id": 1}\n{"body": " "}\n\n{"body": []}\n{"body": "c"}')
    assert documents(path, "body") == [("texts.json:1", "a\nb"), ("texts.json:5", "c")]


def test_a_folder_is_its_files_by_name(made, tiny_folder, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "b.txt").write_text("second\n\nthird")
    (folder / "a.json").write_text('{"text": "first"}')
    (folder / "c.bin").write_bytes(b"\xff")
    tokenizer = Tokenizer.from_pretrained(tiny_folder)
    assert [tokenizer.decode(ids) for ids in made(folder)] == ["first", "second", "third"]


def test_a_new_model_learns_its_tokenizer_from_the_same_texts(made, tmp_path):
    """From a text, and from JSON lines without train.json: a word that is frequent there is one token."""
    word = "Xyloquartz"
    (tmp_path / "book.txt").write_text(f"{word}\n\n" * 50)
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "all.jsonl").write_text(json.dumps({"body": word}) + "\n" + json.dumps({"body": word}))
    for number, (texts, key) in enumerate(((tmp_path / "book.txt", "text"), (tmp_path / "lines", "body"))):
        model = tmp_path / f"model {number}"
        create(CreateFlags(str(EXAMPLE / "configs" / "tiny.json"), str(texts), str(model), json_key=key))
        assert len(Tokenizer.from_pretrained(model).encode(word)) == 1
    with pytest.raises(ValueError, match=r"all.jsonl:1: must have the field 'text', got body"):
        create(CreateFlags(str(EXAMPLE / "configs" / "tiny.json"), str(tmp_path / "lines"), str(tmp_path / "none")))
    with pytest.raises(FileNotFoundError, match="nowhere: not found"):
        create(CreateFlags(str(EXAMPLE / "configs" / "tiny.json"), str(tmp_path / "nowhere"), str(tmp_path / "none")))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.json", b'{"text": "a"}\n{', "a.json:2: must be a JSON object, got '{'"),
        ("a.json", b'{"text": "a"}\n{"txt": "b"}', "a.json:2: must have the field 'text', got txt. --json_key names"),
        ("a.json", b"{}", "a.json:1: must have the field 'text', got no field"),
        ("a.jsonl", b'{"text": 3}', "a.jsonl:1: text must be a text or a list of texts, got 3"),
        ("a.jsonl", b'{"text": ["a", null]}', 'a.jsonl:1: text must be a text or a list of texts, got ["a", null]'),
        ("a.jsonl", b'{"text": "\\ud800"}', r"a.jsonl:1: must be Unicode text, got '\ud800'"),
        ("a.txt", b"one\ntwo \xff\n", "a.txt:2: must be text in UTF-8, got b'two"),
        ("a.txt", b"one\n\ntwo \xef\xbb\xbf\n", "a.txt:3: must have a byte order mark (U+FEFF) only at the start"),
        ("a.txt", b"\n \n", "--input_path must be text, or a folder of .json, .jsonl, .txt files with text, got"),
        ("a.doc/x", b"text", "--input_path must be text, or a folder"),
    ],
)
def test_what_cannot_be_read_is_named_and_no_file_is_left(made, tmp_path, name, content, words):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        made(path if path.suffix else path.parent)
    assert words in str(error.value)
    assert not (tmp_path / "tokens").exists()


def test_a_missing_input_and_files_that_are_there_are_refused(made, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: not found; it must be a file, or a folder of"):
        made(tmp_path / "nowhere")
    (tmp_path / "a.txt").write_text("one")
    first = made(tmp_path / "a.txt")
    with pytest.raises(
        ValueError, match=r"--output_prefix must be new, got .*; all.bin, all.about.json, all.idx would be"
    ):
        made(tmp_path / "a.txt")
    assert made(tmp_path / "a.txt", "more") == first


def test_a_killed_run_leaves_no_index_and_can_be_repeated(tiny_folder, tmp_path):
    """10 MB take several seconds, so the kill finds the tool at work."""
    folder, texts = tmp_path / "tokens", tmp_path / "texts.txt"
    texts.write_text("A text that takes some time.\n\n" * 333_000)
    flags = TokenizeFlags(str(tiny_folder), str(texts), str(folder / "all"))
    words = [f"--{field.name}={getattr(flags, field.name)}" for field in dataclasses.fields(flags)]
    command = [sys.executable, EXAMPLE / "tokenize_texts.py", *words]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + HANGING
            while not any(path.stat().st_size for path in folder.glob(".all.bin.saving")):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "all.idx").exists() and not (folder / "all.bin").exists()
    texts.write_text("A text.")
    assert tokenize_texts(flags) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["all.about.json", "all.bin", "all.idx"]

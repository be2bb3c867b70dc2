"""A byte order mark may begin any file that is read; elsewhere it is an error with its place."""

from __future__ import annotations

import json
import shutil

import pytest

from examples.llama2_13b.data.chat_template import ChatTemplate
from examples.llama2_13b.data.samples import read_examples
from examples.llama2_13b.data.tokenizer import Tokenizer
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.generate import prompts
from examples.llama2_13b.generate.generation_settings import GenerationSettings
from examples.llama2_13b.io import flags
from examples.llama2_13b.model import Llama
from examples.llama2_13b.sft import SftFlags

MARK = "\ufeff"
LINE = '{"src": "a", "tgt": "b"}\n'
TEMPLATE = {"system": "", "conversation": ["{{user}}", "{{bot}}"]}


def test_a_mark_that_begins_a_file_is_dropped(tmp_path):
    def file(name, content):
        path = tmp_path / name
        path.write_bytes((MARK + content).encode())
        return path

    assert [one.question for one in prompts.from_file(file("prompts.txt", "one\ntwo"))] == ["one", "two"]
    assert [one.turns for one in read_examples([file("train.json", LINE + LINE)])] == [(("a", "b"),)] * 2
    assert read_examples([file("empty.json", "\n" + LINE)])[0].where.endswith(":2")
    assert ChatTemplate.from_json(file("template.json", json.dumps(TEMPLATE))) == ChatTemplate(
        "", "{{user}}", "{{bot}}"
    )
    required = {"model_name_or_path": "m", "dataset_name_or_path": "d", "output_dir": "o"}
    assert flags.parse(SftFlags, [str(file("flags.json", json.dumps(required)))], "sft").output_dir == "o"


def test_every_file_of_a_model_folder_may_begin_with_a_mark(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / "generation_config.json").write_text('{"do_sample": false}')
    (folder / "special_tokens_map.json").write_text('{"bos_token": "<s>"}')
    before = Tokenizer.from_pretrained(folder).encode("hello")
    for path in folder.glob("*.json"):
        path.write_bytes(MARK.encode() + path.read_bytes())
    config = LlamaConfig.from_json(folder / "config.json")
    assert config == LlamaConfig.from_json(tiny_folder / "config.json")
    assert GenerationSettings.from_pretrained(folder, config).is_greedy
    assert Tokenizer.from_pretrained(folder).encode("hello") == before
    assert Llama.from_pretrained(folder).config == config


@pytest.mark.parametrize(
    "name, content",
    [
        ("prompts.txt", f"one\n\n{MARK}two"),
        ("prompts.txt", f"one\n\ntw{MARK}o"),
        ("train.json", f"{LINE}\n{MARK}{LINE}"),
        ("train.jsonl", f'{LINE}\n{{"src": "a", "tgt": "b{MARK}"}}\n'),
        ("train.jsonl", f'{LINE}\n{{"src": "\\ufeffa", "tgt": "b"}}\n'),
        ("train.json", f"{MARK}{LINE}\n{MARK}{LINE}"),
    ],
)
def test_a_mark_elsewhere_is_an_error_with_its_line(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{name}:3: .*must have a byte order mark \(U\+FEFF\) only at the start"):
        prompts.from_file(path)


def test_a_mark_on_the_command_line_and_in_a_template_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="prompt 2 must have a byte order mark"):
        prompts.from_texts(["one", f"{MARK}two"])
    for bad, rule in ((MARK, "a byte order mark"), ("\ud800", "be Unicode text")):
        path = tmp_path / "template.json"
        path.write_text(json.dumps({**TEMPLATE, "system": f"a{bad}"}))
        with pytest.raises(ValueError, match=f"template.json: every template must .*{rule}"):
            ChatTemplate.from_json(path)

"""What the commands make of a model's folder: its number of positions, its tokenizer, its chat templates."""

from __future__ import annotations

import json
import shutil

import pytest

from examples.llama2_13b.data.conversation import encode_messages, template_of
from examples.llama2_13b.data.tokenizer import Tokenizer
from examples.llama2_13b.export import ExportFlags, export
from examples.llama2_13b.generate.prompts import from_texts
from examples.llama2_13b.predict import PredictFlags, Predictor, predict
from examples.llama2_13b.sft import TEMPLATE, SftFlags, read_samples, sft
from tests.llama.conftest import EXAMPLE

JINJA = "chat_template.jinja"


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "model")


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.json").write_text('{"src": "a b c", "tgt": "d e"}\n{"src": "' + "xyz" * 90 + '", "tgt": "f"}\n')
    return folder


def flags_of(folder, dataset, output, **given):
    folders = {"model_name_or_path": folder, "dataset_name_or_path": dataset, "output_dir": output}
    return SftFlags(**{name: str(path) for name, path in folders.items()}, **given)


@pytest.mark.parametrize(
    "positions, given, src_length, max_length",
    [
        (256, {}, 128, 256),
        (4096, {}, 1024, 2048),
        (1024, {"src_length": 900}, 900, 1024),
        (4096, {"max_length": 4096}, 1024, 4096),
        (4096, {"max_length": 100}, 50, 100),
        (3, {}, 1, 3),
    ],
)
def test_default_lengths_of_training_follow_the_model(positions, given, src_length, max_length):
    flags = flags_of("model", "data", "output", **given).within(positions)
    assert (flags.src_length, flags.max_length) == (src_length, max_length)
    assert flags.deciding()["max_length"] == max_length


def test_nothing_but_folders_is_needed_with_a_small_model(folder, dataset, tmp_path, capsys):
    """256 positions, fewer than the lengths that larger models get."""
    output, exported = tmp_path / "run", tmp_path / "exported"
    flags = flags_of(folder, dataset, output, max_steps=2)
    assert sft(flags) == 0
    shown = capsys.readouterr().out
    assert "training samples cut: 1 of 2; left out " in shown and "--src_length 128, --max_length 256" in shown
    assert "evaluation samples cut: 0 of 0" in shown and "chat template" not in shown
    export(ExportFlags(str(output), str(exported)))
    assert predict(PredictFlags(str(exported), prompts=("a b c",), decode_strategy="greedy_search")) == 0
    assert "chat template" not in capsys.readouterr().err


def test_a_template_of_hugging_face_is_followed_and_passed_on(folder, dataset, tmp_path, capsys):
    text = "{% for m in messages %}{{ m.content + ('?' if m.role == 'user' else eos_token) }}{% endfor %}"
    (folder / JINJA).write_text(text)
    output, exported = tmp_path / "run", tmp_path / "exported"
    flags = flags_of(folder, dataset, output, max_steps=2, save_steps=1)
    assert sft(flags) == 0
    assert f"chat template: {folder / JINJA}; --chat_template names another, or none" in capsys.readouterr().out
    for saved in (output, output / "checkpoint-1"):
        assert (saved / JINJA).read_text() == text and not (saved / TEMPLATE).exists()
    export(ExportFlags(str(output), str(exported)))
    tokenizer = Tokenizer.from_pretrained(exported)
    question = [{"role": "user", "content": "a b c"}]
    prompt = encode_messages(question, tokenizer, template_of(exported))
    assert prompt == tokenizer.encode("a b c?")
    samples = read_samples(flags.within(256), "train", tokenizer, template_of(output))
    assert samples[0].input_ids[: len(prompt)] == prompt and samples[0].labels[-1] == 2
    assert Predictor(PredictFlags(str(exported)), from_texts(["a b c"]))._tokens == [prompt]


@pytest.mark.parametrize("given, kept", [("none", set()), ("other.jinja", {JINJA}), ("other.json", {TEMPLATE})])
def test_another_template_than_the_folders_is_followed_if_named(folder, dataset, tmp_path, capsys, given, kept):
    (folder / JINJA).write_text("{{ raise_exception('not this one') }}")
    described = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(described | {"chat_template": "{{ messages }}"}))
    (tmp_path / "other.jinja").write_text("{% for m in messages %}{{ m.content + eos_token }}{% endfor %}")
    (tmp_path / "other.json").write_bytes((EXAMPLE / "configs" / "llama2_chat.json").read_bytes())
    named = given if given == "none" else str(tmp_path / given)
    output = tmp_path / "run"
    assert sft(flags_of(folder, dataset, output, max_steps=1, chat_template=named)) == 0
    assert "chat template" not in capsys.readouterr().out
    assert {JINJA, TEMPLATE} & {path.name for path in output.iterdir()} == kept
    for name in kept:
        assert (output / name).read_bytes() == (tmp_path / given).read_bytes()
    assert json.loads((output / "tokenizer_config.json").read_text()) == described


def test_a_run_that_is_given_up_leaves_no_template(folder, dataset, tmp_path):
    output = tmp_path / "run"
    flags = {"max_steps": 1, "save_steps": 1}
    sft(flags_of(folder, dataset, output, **flags))
    (output / JINJA).write_text("{{ messages }}")
    sft(flags_of(folder, dataset, output, **flags, overwrite_output_dir=True))
    assert not (output / JINJA).exists()


@pytest.mark.parametrize(
    "name, fields, words",
    [
        (
            "config.json",
            {"bos_token_id": 0, "eos_token_id": 1},
            "config.json: bos_token_id must be 1.*tokenizer_config",
        ),
        ("generation_config.json", {"eos_token_id": [0, 7]}, "generation_config.json: eos_token_id must be 2"),
        ("config.json", {"vocab_size": 300}, "tokenizer.json: must be of at most 300 tokens"),
    ],
)
def test_files_that_disagree_stop_a_run_before_anything_is_written(folder, dataset, tmp_path, name, fields, words):
    path = folder / name
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(before | fields))
    with pytest.raises(ValueError, match=words):
        sft(flags_of(folder, dataset, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_line_without_text_stops_a_run_with_its_place(folder, dataset, tmp_path):
    (dataset / "dev.json").write_text('{"src": "a", "tgt": "b"}\n{"src": "a", "tgt": ""}\n')
    with pytest.raises(ValueError, match="dev.json:2: tgt must hold text to learn"):
        sft(flags_of(folder, dataset, tmp_path / "run"))
    assert not (tmp_path / "run").exists()

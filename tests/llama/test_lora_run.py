"""Runs of the command `lora`: resuming, going on from an adapter, several processes, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shlex

import numpy as np
import pytest
from safetensors.numpy import load_file

from examples.llama2_13b.export import ExportFlags, export
from examples.llama2_13b.folders import adapter_folder
from examples.llama2_13b.io import flags as flags_module
from examples.llama2_13b.lora import PROGRAM, LoraFlags, lora
from examples.llama2_13b.merge import MergeFlags, merge
from examples.llama2_13b.model import Llama
from examples.llama2_13b.sft import sft
from examples.llama2_13b.train.metrics import read_log
from examples.llama2_13b.train.trainer import random_seed
from tests.llama.conftest import EXAMPLE
from tests.llama.test_sft_processes import launched
from tests.test_commands_in_documents import command_blocks

pytestmark = pytest.mark.usefixtures("no_measuring", "no_drawing")


@pytest.fixture
def lora_flags(sft_flags):
    def make(lora_rank=None, lora_alpha=None, lora_dropout=None, target_modules=None, lora_path=None, **changes):
        own = {"lora_rank": lora_rank, "lora_alpha": lora_alpha, "lora_dropout": lora_dropout}
        own |= {"target_modules": target_modules, "lora_path": lora_path}
        return LoraFlags(**dataclasses.asdict(sft_flags(**changes)), **own)

    return make


def losses(folder):
    return [line["loss"] for line in read_log(folder / "log.jsonl")]


def adapter(folder):
    return load_file(folder / "adapter_model.safetensors")


def assert_same(one, other):
    assert one.keys() == other.keys() and one
    for name, value in one.items():
        np.testing.assert_array_equal(other[name], value, err_msg=name)


def test_a_run_leaves_the_adapter_and_the_model_as_it_was(tiny_folder, lora_flags, tmp_path):
    before = {path.name: path.read_bytes() for path in tiny_folder.iterdir()}
    changes = {"lora_rank": 4, "learning_rate": 1e-2, "max_steps": 12, "save_steps": 12}
    assert lora(lora_flags(**changes, lora_alpha=32.0, target_modules="down_proj, q_proj")) == 0
    assert {path.name: path.read_bytes() for path in tiny_folder.iterdir()} == before
    output = tmp_path / "run"
    assert losses(output)[-1] < losses(output)[0] - 0.02
    config = json.loads((output / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "down_proj"] and (config["r"], config["lora_alpha"]) == (4, 32)
    assert config["base_model_name_or_path"] == str(tiny_folder)
    tensors = adapter(output)
    assert len(tensors) == 2 * 2 * 2 and all(np.abs(value).max() > 1e-3 for value in tensors.values())
    assert not list(output.glob("*/model*")) and not list(output.glob("model*"))
    assert (output / "tokenizer.json").exists()
    moments = load_file(next((output / "checkpoint-12").glob("moment1-*")))
    assert moments.keys() == tensors.keys() == adapter(output / "checkpoint-12").keys()


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
def test_a_resumed_run_is_equal_bit_by_bit(native, lora_flags, tmp_path, bf16):
    native.set_num_threads(2)  # what threads share must not depend on who comes first
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    changes = {"bf16": bf16, "save_steps": 3, "lora_dropout": 0.2, "recompute": True, "weight_decay": 0.1}
    lora(lora_flags(output_dir=str(whole), **changes))
    lora(lora_flags(output_dir=str(resumed), resume_from_checkpoint=str(whole / "checkpoint-3"), **changes))
    assert losses(resumed) == losses(whole)[3:]
    assert_same(adapter(whole), adapter(resumed))
    for moment in ("moment1", "moment2"):
        one, other = (load_file(next((run / "checkpoint-6").glob(f"{moment}-*"))) for run in (whole, resumed))
        assert_same(one, other)


@pytest.mark.parametrize(
    "layout, dropout", [("tensor_parallel_degree", 0.2), ("pipeline_parallel_degree", 0.0)], ids=["tensor", "pipeline"]
)
def test_two_processes_train_as_one(tiny_folder, few_samples, lora_flags, tmp_path, layout, dropout):
    """Ranks that divide a layer drop the same inputs as one process does, with the sequence divided too."""
    flags = {"max_steps": 3, "learning_rate": 1e-2, "src_length": 100, "max_length": 256, "save_steps": 3}
    flags |= {"gradient_accumulation_steps": 2, "recompute": True}
    given = flags | {"dataset_name_or_path": few_samples, "lora_dropout": dropout, layout: 2}
    code, logs = launched(2, tmp_path / "two", tiny_folder, tmp_path / "log", entry="lora", **given)
    assert code == 0, logs
    assert lora(lora_flags(**flags, lora_dropout=dropout, output_dir=str(tmp_path / "one"), warmup_steps=0)) == 0
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)
    two, one = adapter(tmp_path / "two/checkpoint-3"), adapter(tmp_path / "one")
    assert_same(two, adapter(tmp_path / "two"))
    assert two.keys() == one.keys()
    moved, apart = (np.sqrt(sum(np.sum((one[n] - two[n] * other) ** 2) for n in one)) for other in (0, 1))
    assert apart < 1e-3 * moved  # AdamW's first steps take the sign of gradients that may be rounding alone


def test_what_a_run_left_that_was_killed_while_it_saved_is_replaced(lora_flags, tmp_path):
    output = tmp_path / "run"
    output.mkdir()
    (output / adapter_folder.UNFINISHED).write_bytes(b"half")
    assert lora(lora_flags(max_steps=2, resume_from_checkpoint="auto")) == 0
    assert adapter(output) and not (output / adapter_folder.UNFINISHED).exists()


def test_a_run_goes_on_from_an_adapter(tiny_folder, lora_flags, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    lora(lora_flags(output_dir=str(first), lora_rank=4, target_modules="q_proj,v_proj", max_steps=3))
    own = {"lora_path": str(first), "lora_dropout": 0.1, "save_dtype": "bfloat16"}
    flags = lora_flags(output_dir=str(second), max_steps=2, **own)
    assert (flags.adapter.rank, flags.adapter.alpha, flags.adapter.dropout) == (4, 8, 0.1)
    lora(flags)
    before, after = adapter(first), adapter(second)
    assert before.keys() == after.keys() and {value.dtype.name for value in after.values()} == {"bfloat16"}
    assert losses(second)[0] != pytest.approx(losses(first)[0], rel=1e-6)  # not from the model alone
    for name, value in dict(lora_rank=8, lora_alpha=1.0, target_modules="q_proj").items():
        with pytest.raises(ValueError, match=f"lora: --{name} must be .* as in .*first, or left out"):
            lora_flags(lora_path=str(first), **{name: value}).adapter  # noqa: B018


def test_a_resumed_run_needs_the_same_adapter_and_the_same_model(tiny_folder, lora_flags, tmp_path):
    lora(lora_flags(max_steps=2, save_steps=1))
    for name, value in dict(lora_rank=4, lora_alpha=2.0, lora_dropout=0.5, target_modules="q_proj").items():
        with pytest.raises(ValueError, match=f"lora: --{name} must be .* as in .*checkpoint-2"):
            lora(lora_flags(max_steps=3, resume_from_checkpoint="last", **{name: value}))
    other = tmp_path / "other"
    model = Llama.from_pretrained(tiny_folder)
    weight = model.layers["0"].mlp.down_proj.weight
    weight.set_value(weight * 1.001)
    model.save_pretrained(other)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (other / name).write_bytes((tiny_folder / name).read_bytes())
    with pytest.raises(ValueError, match="lora: --model_name_or_path must be 'a model with digest"):
        lora(lora_flags(model_name_or_path=str(other), max_steps=3, resume_from_checkpoint="last"))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"lora_rank": 0}, "lora: --lora_rank must be at least 1, got 0"),
        ({"lora_alpha": -1.0}, "lora: the adapter's lora_alpha must be a number above 0"),
        ({"lora_dropout": 1.0}, r"lora: the adapter's lora_dropout must be in \[0, 1\), got 1"),
        ({"target_modules": "q_proj,lm_head"}, "the adapter's target_modules .*trains no adapter on it, got lm_head"),
        ({"target_modules": "query"}, "the adapter's target_modules must be of q_proj, .*, got query"),
        ({"target_modules": ""}, "the adapter's target_modules must be at least one of"),
    ],
)
def test_an_adapter_that_cannot_be_is_refused(lora_flags, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        lora(lora_flags(**changes))
    assert not (tmp_path / "run").exists()


def test_a_folder_with_a_model_gets_no_adapter(lora_flags, sft_flags, tmp_path):
    """The other way round the new model replaces the adapter: nothing is left that could be taken for it."""
    lora(lora_flags(max_steps=1, warmup_steps=0))
    with pytest.raises(ValueError, match="lora: --output_dir must hold no run or model yet"):
        lora(lora_flags(max_steps=1, warmup_steps=0))
    sft(sft_flags(max_steps=1, warmup_steps=0, overwrite_output_dir=True))
    assert not list((tmp_path / "run").glob("adapter*"))
    with pytest.raises(ValueError, match="lora: --output_dir must be a folder without a model"):
        lora(lora_flags(max_steps=1, warmup_steps=0, overwrite_output_dir=True))


def test_the_merged_folder_is_exported_with_the_chat_template_of_the_adapter(tiny_folder, lora_flags, tmp_path):
    template = EXAMPLE / "configs/llama2_chat.json"
    lora(lora_flags(max_steps=1, warmup_steps=0, chat_template=str(template)))
    merge(MergeFlags(str(tiny_folder), str(tmp_path / "run"), str(tmp_path / "merged")))
    assert (tmp_path / "merged/chat_template.json").read_bytes() == template.read_bytes()
    assert not list((tmp_path / "merged").glob("adapter*"))
    assert export(ExportFlags(str(tmp_path / "merged"), str(tmp_path / "exported"))) == 0


def test_copies_of_the_model_and_stages_drop_other_inputs():
    places = itertools.product(range(4), range(4), range(4))
    assert len({random_seed(42, *place) for place in places}) == 64


def test_the_commands_of_the_page_run(tiny_folder, tmp_path, monkeypatch):
    """For two steps, with the small model in place of the demo's."""
    page = (EXAMPLE / "README.md").read_text()
    (commands,) = [found for marker, found in command_blocks(page) if marker == "run by: tests/llama/test_lora_run.py"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(EXAMPLE.parent)
    (tmp_path / "output").mkdir()
    (tmp_path / "output/new").symlink_to(tiny_folder)
    assert [command.split()[2].rpartition(".")[2] for command in commands] == ["lora", "merge"]
    for command in commands:
        _, _, name, *words = shlex.split(command)
        if name == PROGRAM:
            short = ["--max_steps=2", "--warmup_steps=1", "--eval_steps=2"]
            assert lora(flags_module.parse(LoraFlags, [*words, *short], name)) == 0
        else:
            assert merge(flags_module.parse(MergeFlags, words, name)) == 0
    assert (tmp_path / "output/merged/config.json").exists()

"""A fine-tuned model comes out in the dtypes of its source; checkpoints are float32."""

from __future__ import annotations

import json
import shutil
import signal

import ml_dtypes
import numpy as np
import paddle
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from examples.llama2_13b.model import Llama
from examples.llama2_13b.sft import sft
from tests.llama.meshes import making_a_model
from tests.llama.test_sft import interrupt_at, losses, weights
from tests.llama.test_tensor_parallel import on_two

pytestmark = pytest.mark.usefixtures("no_measuring")
SHORT = {"max_steps": 2, "warmup_steps": 0}
BF16 = ml_dtypes.bfloat16


def stored(folder, source, dtype_of):
    """The source with values that every dtype holds, each tensor in the dtype that its name gets."""
    shutil.copytree(source, folder)
    tensors = {name: value.astype(np.float16).astype(BF16) for name, value in weights(source).items()}
    for path in [*folder.glob("model-*.safetensors"), folder / "model.safetensors.index.json"]:
        path.unlink()
    tensors = {name: value.astype(dtype_of(name)) for name, value in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.fixture
def source(tiny_folder, tmp_path):
    return lambda name, dtype_of: stored(tmp_path / name, tiny_folder, dtype_of)


@pytest.mark.parametrize("dtype", [BF16, np.float16, np.float32, np.float64])
def test_the_source_gives_the_dtype(source, sft_flags, tmp_path, dtype):
    for name, kind in (("exact", np.float32), ("kept", dtype)):
        model = source(f"{name}-source", lambda tensor, kind=kind: kind)
        assert sft(sft_flags(model_name_or_path=model, output_dir=str(tmp_path / name), **SHORT)) == 0
    exact, kept = weights(tmp_path / "exact"), weights(tmp_path / "kept")
    assert exact.keys() == kept.keys() and len(kept) == 21
    for name, value in kept.items():
        assert value.dtype == dtype
        np.testing.assert_array_equal(value, exact[name].astype(dtype), err_msg=name)
    name = np.dtype(dtype).name
    assert json.loads((tmp_path / "kept" / "config.json").read_text())["torch_dtype"] == name
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "kept", dtype="auto")
    assert theirs.dtype == getattr(torch, name)


def mixed(name):
    return np.float32 if "norm" in name else np.float16 if "lm_head" in name else BF16


def test_a_mixed_folder_comes_out_mixed(source, sft_flags, tmp_path):
    assert sft(sft_flags(model_name_or_path=source("source", mixed), **SHORT)) == 0
    assert {name: value.dtype for name, value in weights(tmp_path / "run").items()} == {
        name: np.dtype(mixed(name)) for name in weights(tmp_path / "run")
    }
    assert json.loads((tmp_path / "run" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_a_resumed_run_ends_in_the_dtypes_of_its_first_model(source, sft_flags, tmp_path, monkeypatch):
    """Its checkpoints are float32, and so is what it goes on from: bit by bit the run without a break."""
    flags = {"model_name_or_path": source("source", mixed), "max_steps": 3, "warmup_steps": 0}
    assert sft(sft_flags(output_dir=str(tmp_path / "whole"), **flags)) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1, signal.SIGTERM)
        assert sft(sft_flags(**flags)) == 128 + signal.SIGTERM
    assert {value.dtype for value in weights(tmp_path / "run" / "checkpoint-1").values()} == {np.dtype("float32")}
    assert sft(sft_flags(resume_from_checkpoint="last", **flags)) == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "run")
    for name, value in whole.items():
        assert resumed[name].dtype == value.dtype == mixed(name)
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)


def test_a_flag_names_another(source, sft_flags, tmp_path):
    model = source("source", lambda name: BF16)
    assert sft(sft_flags(model_name_or_path=model, save_dtype="float32", **SHORT)) == 0
    assert {value.dtype for value in weights(tmp_path / "run").values()} == {np.dtype("float32")}
    with pytest.raises(ValueError, match="--save_dtype must be float32 or bfloat16 or float16, got int8"):
        sft_flags(save_dtype="int8")


def test_what_is_read_and_written_keeps_every_bit(source, tmp_path):
    """Also when two ranks divide it, whose shards end where one process's do."""
    folder = source("source", mixed)
    expected = load_file(f"{folder}/model.safetensors")
    Llama.from_pretrained(folder).save_pretrained(tmp_path / "alone")

    def read_and_write(shards):
        with making_a_model(shards.group):
            model = Llama.from_pretrained(folder, shards=shards)
        model.save_pretrained(tmp_path / "two")

    on_two(read_and_write)
    for name in ("alone", "two"):
        written = weights(tmp_path / name)
        assert written.keys() == expected.keys()
        for tensor, value in expected.items():
            assert written[tensor].dtype == value.dtype
            np.testing.assert_array_equal(written[tensor], value)


def test_values_beyond_float16_are_written_in_float32(source, tmp_path):
    model = Llama.from_pretrained(source("source", lambda name: np.float16))
    model.norm.weight.set_value(paddle.full([model.config.hidden_size], 1e5))
    model.save_pretrained(tmp_path / "model")
    written = weights(tmp_path / "model")
    assert written["model.norm.weight"].dtype == np.float32 and (written["model.norm.weight"] == 1e5).all()
    assert {value.dtype for name, value in written.items() if name != "model.norm.weight"} == {np.dtype(np.float16)}


def test_a_value_beyond_float16_on_one_of_two_ranks_keeps_its_tensor_in_float32(source, tmp_path):
    folder = source("source", lambda name: np.float16)

    def write(shards):
        with making_a_model(shards.group):
            model = Llama.from_pretrained(folder, shards=shards)
        if shards.rank == 1:
            value = model.lm_head.weight.numpy()
            value[0, 0] = 1e5
            model.lm_head.weight.set_value(value)
        model.save_pretrained(tmp_path / "two")

    on_two(write)
    written = weights(tmp_path / "two")
    assert {name for name, value in written.items() if value.dtype == np.float32} == {"lm_head.weight"}
    assert (written["lm_head.weight"] == 1e5).sum() == 1 and len(written) == 21

"""Weights in other formats: 8-bit floats, and pickles that are refused with a command that works."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import ml_dtypes
import numpy as np
import paddle
import pytest
import torch
from safetensors.numpy import load_file, save_file

from examples.llama2_13b.folders.model_folder import config_of, weights_of
from examples.llama2_13b.model import Llama


def weights(folder):
    return {
        name: value for path in sorted(folder.glob("model*.safetensors")) for name, value in load_file(path).items()
    }


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """The model without its weights."""
    folder = shutil.copytree(tiny_folder, tmp_path / "it's a model")
    for path in folder.glob("model*.safetensors*"):
        path.unlink()
    return folder


def convert(message):
    """Run the command that an error gives."""
    command = shlex.split(re.search(r"(python -c .*)", str(message), re.DOTALL)[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *command[1:]], check=True, timeout=300, env=environment)


def strided(tensor):
    """A matrix whose columns are contiguous."""
    return tensor.mT.contiguous().mT if tensor.ndim == 2 else tensor


@pytest.mark.parametrize("count", [1, 2])
def test_the_command_for_a_pickle_of_pytorch_works(tiny_folder, folder, count):
    tensors = {name: torch.tensor(value) for name, value in weights(tiny_folder).items()}
    names = sorted(tensors)
    for number in range(count):
        name = "pytorch_model.bin" if count == 1 else f"pytorch_model-0000{number + 1}-of-00002.bin"
        torch.save({each: strided(tensors[each]) for each in names[number::count]}, folder / name)
    with pytest.raises(ValueError, match=r"must be in safetensors or GGUF, got pytorch_model.*\.bin: pickles") as error:
        Llama.from_pretrained(folder)
    convert(error.value)
    assert all(np.array_equal(value, weights(tiny_folder)[name]) for name, value in weights(folder).items())
    Llama.from_pretrained(folder)


def test_tied_tensors_of_a_pickle_are_written_too(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    shared = torch.ones(512, 48)
    torch.save({"model.embed_tokens.weight": shared, "lm_head.weight": shared}, folder / "whole.pt")
    for source in (folder / "whole.pt", folder):
        with pytest.raises(ValueError, match=r"got whole\.pt: pickles") as error:
            weights_of(source) if source.is_dir() else config_of(source)
        convert(error.value)
        assert set(weights(folder)) == {"model.embed_tokens.weight", "lm_head.weight"}
        (folder / "model.safetensors").unlink()


def test_the_command_for_a_pickle_of_paddle_works(tiny_folder, folder):
    """Its linear weights are [in_features, out_features]."""
    theirs = {}
    for name, value in weights(tiny_folder).items():
        is_linear = value.ndim == 2 and "embed" not in name
        theirs[name] = paddle.to_tensor(value.T if is_linear else value)
    theirs["model.norm.weight"] = theirs["model.norm.weight"].cast("bfloat16")
    paddle.save(theirs, str(folder / "model_state.pdparams"))
    with pytest.raises(ValueError, match="model_state.pdparams: pickles.* Convert them, if you trust them: ") as error:
        Llama.from_pretrained(folder)
    convert(error.value)
    ours, same = Llama.from_pretrained(folder).state_dict(), Llama.from_pretrained(tiny_folder).state_dict()
    assert all(np.array_equal(value.numpy(), same[name].numpy()) for name, value in ours.items())


def test_another_file_is_no_model(tmp_path):
    (tmp_path / "model.txt").touch()
    with pytest.raises(ValueError, match=r"model.txt: must be a model folder or a .gguf file, got another file"):
        config_of(tmp_path / "model.txt")


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_floats_of_8_bits_are_read_and_saved_in_16(tiny_folder, folder, tmp_path, dtype):
    narrow = {name: (8 * value).astype(dtype) for name, value in weights(tiny_folder).items()}
    kinds = {ml_dtypes.float8_e4m3fn: torch.float8_e4m3fn, ml_dtypes.float8_e5m2: torch.float8_e5m2}
    from safetensors.torch import save_file as save_torch

    save_torch({name: torch.tensor(value.view(np.uint8)).view(kinds[dtype]) for name, value in narrow.items()},
               folder / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    model = Llama.from_pretrained(folder)
    assert len(weights_of(folder).digest()) == 16
    model.save_pretrained(tmp_path / "saved")
    saved = weights(tmp_path / "saved")
    for name, value in narrow.items():
        assert saved[name].dtype == ml_dtypes.bfloat16
        assert np.array_equal(saved[name].astype(np.float32), value.astype(np.float32)), name
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_integers_are_refused(folder, tiny_folder):
    save_file(
        {name: value.astype(np.int8) for name, value in weights(tiny_folder).items()}, folder / "model.safetensors"
    )
    with pytest.raises(ValueError, match="must be F64, F32, F16, BF16, F8_E4M3, F8_E5M2, got I8"):
        Llama.from_pretrained(folder)

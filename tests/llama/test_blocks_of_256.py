"""A file in the mixture that llama.cpp calls Q4_K_M, whose codes every command keeps, beside transformers."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf import quants
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.llama2_13b.export import ExportFlags, export
from examples.llama2_13b.folders.gguf_file import GGUFFile
from examples.llama2_13b.folders.quantization import Format
from examples.llama2_13b.model.quantized_llama import QuantizedLlama
from examples.llama2_13b.predict import PredictFlags, predict
from examples.llama2_13b.serve import ServeFlags, exported
from tests.llama.gguf_files import BLOCKS_OF_256, write
from tests.llama.quantized_models import of_blocks, quantized
from tests.llama.test_lora import LoraRun
from tests.llama.test_quantized_model import exported_scores
from tests.llama.test_static_program import inputs

Q4_K, Q6_K = Format("int4", 32, False), Format("int8", 16, True)
IN_6_BITS = ("v_proj", "down_proj", "lm_head")
KEPT = {f"11 in {Q4_K}, as stored", f"5 in {Q6_K}, as stored"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose rows are whole blocks of 256."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
    return of_blocks(tmp_path_factory.mktemp("floats"), **sizes)


@pytest.fixture(scope="module")
def file(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "model.gguf"
    return write(path, folder, lambda name: Type.Q6_K if name.split(".")[-2] in IN_6_BITS else Type.Q4_K)


@pytest.fixture(scope="module")
def theirs(file):
    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.tensor(ids)).logits.numpy()


def kept(said):
    """Whether no matrix was rounded or made floats, by what a command printed of them."""
    (line,) = (line for line in said.splitlines() if "weights: " in line)
    return set(line.partition("weights: ")[2].split("; ")) == KEPT


def form(held):
    """Of a layer or a pack."""
    return Format(held.dtype, held.group_size, getattr(held, "weight", held).symmetric)


@pytest.mark.parametrize("kind", BLOCKS_OF_256, ids=lambda kind: kind.name)
def test_the_blocks_that_are_written_here_are_near_their_weights(kind):
    weight = np.random.default_rng(0).standard_normal((6, 512)).astype(np.float32)
    error = quants.dequantize(BLOCKS_OF_256[kind](weight), kind) - weight
    assert np.sqrt(np.mean(error**2)) < {Type.Q4_K: 0.09, Type.Q6_K: 0.022}[kind]


def test_the_model_computes_with_the_files_codes(file, theirs):
    model = QuantizedLlama.load(file, "float32")
    assert kept(model.summary), model.summary
    parts = model.layers["0"].self_attn.qkv_proj.parts
    formats = [(form(part), part.weight.shape[1]) for part in parts]
    assert formats == [(Q4_K, 256 + 128), (Q6_K, 128)]  # q beside k, and v
    assert [form(part) for part in model.layers["1"].mlp.gate_up_proj.parts] == [Q4_K]
    ids = np.random.default_rng(0).integers(0, 512, (2, 19))
    with paddle.no_grad():
        ours = model(paddle.to_tensor(ids)).numpy()
    np.testing.assert_allclose(ours, logits_of(theirs, ids), atol=1e-5)


def test_export_predict_and_serve_keep_the_codes(file, theirs, tmp_path, capsys):
    export(ExportFlags(str(file), str(tmp_path / "exported"), weight_dtype="int8"))
    assert kept(capsys.readouterr().err)
    scores = exported_scores(tmp_path / "exported", (9,), "float32")
    np.testing.assert_allclose(scores, logits_of(theirs, inputs(9).input_ids[None])[:, -1], atol=1e-5)
    words = {"prompts": ("a b",), "decode_strategy": "greedy_search", "max_length": 6}
    assert predict(PredictFlags(str(tmp_path / "exported"), **words)) == 0
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    prompt = tokenizer("a b", return_tensors="pt")
    answer = theirs.generate(**prompt, max_new_tokens=6, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) in capsys.readouterr().out
    with exported(file, ServeFlags(str(file), weight_dtype="int4")) as folder:
        assert "fusionkit_quantized_linear" in (folder / "model.json").read_text()
    assert kept(capsys.readouterr().err)


def test_a_folder_of_codes_has_their_scales_in_float32(file, tmp_path):
    output = quantized(file, tmp_path, "int4")
    ours, name = GGUFFile(file), "model.layers.1.mlp.down_proj.weight"
    with safe_open(next(output.glob("*.safetensors")), framework="np") as stored:
        codes, scales = (stored.get_tensor(f"{name}.{kind}") for kind in ("codes", "scales"))
    assert scales.dtype == np.float32 and codes.dtype == np.int8
    values = codes.reshape(256, 32, 16) * scales[..., None]
    want = ours.read(name, (slice(0, 256), slice(0, 512)))
    assert np.array_equal(values.reshape(256, 512).astype(np.float32), want)
    assert np.array_equal(*(logits(QuantizedLlama.load(each, "float32")) for each in (output, file)))


def logits(model):
    with paddle.no_grad():
        return model(paddle.arange(18).reshape([2, 9])).numpy()


def test_adapters_are_trained_over_the_files_codes(file):
    packed, floats = (LoraRun(file, **how).train(2) for how in ({"packs": Format("int8", None, True)}, {}))
    packs = packed.model.layers["0"].self_attn.qkv_proj.packs
    assert [form(pack) for pack in packs] == [Q4_K, Q6_K]
    np.testing.assert_allclose(packed.losses, floats.losses, rtol=1e-5)

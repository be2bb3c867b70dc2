"""The Llama in 8 and 4 bits, beside the one in floats that has the codes' values."""

from __future__ import annotations

import importlib

import numpy as np
import paddle
import pytest
from gguf import GGMLQuantizationType as Type

from examples.llama2_13b.export import ExportFlags, export
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.folders.quantization import asked
from examples.llama2_13b.generate.key_value_cache import KeyValueCache
from examples.llama2_13b.generate.static_program import StaticProgram
from examples.llama2_13b.io import flags
from examples.llama2_13b.model import Llama
from examples.llama2_13b.model.quantized_llama import QuantizedLlama
from examples.llama2_13b.predict import PredictFlags, predict
from examples.llama2_13b.serve import ServeFlags, exported
from tests.llama import gguf_files
from tests.llama.gguf_files import write
from tests.llama.quantized_models import of_blocks, quantized
from tests.llama.test_static_program import inputs


@pytest.fixture(scope="module")
def biased(tmp_path_factory):
    """Biases beside the matrices."""
    return of_blocks(tmp_path_factory.mktemp("biased"), attention_bias=True)


def logits(model):
    ids = np.random.default_rng(0).integers(0, 512, (2, 19))
    with paddle.no_grad():
        return model(paddle.to_tensor(ids)).numpy()


@pytest.mark.parametrize("how", [("int8", 32, True), ("int4", 16, False), ("int4", 0, True)], ids=str)
def test_the_model_computes_with_the_values_of_its_codes(biased, tmp_path, how):
    """Beside the model of floats that are these values."""
    output = quantized(biased, tmp_path, *how)
    ours = logits(QuantizedLlama.load(output, "float32"))
    np.testing.assert_allclose(ours, logits(Llama.from_pretrained(output)), atol=1e-6)
    at_once = QuantizedLlama.load(biased, "float32", asked("test", *how))
    assert np.array_equal(ours, logits(at_once))
    assert np.abs(ours - logits(Llama.from_pretrained(biased))).max() > 1e-4


def test_a_model_of_mixed_types_computes_as_the_file_says(mixed):
    model = QuantizedLlama.load(mixed, "float32")
    np.testing.assert_allclose(logits(model), logits(Llama.from_pretrained(mixed)), atol=1e-6)
    assert len(model.layers["0"].self_attn.qkv_proj.parts) == 2  # q and k, which are Q4_1, and v
    assert len(model.layers["0"].mlp.gate_up_proj.parts) == 1
    floats_left = [f"1 in floats: layers.{layer}.mlp.down_proj.weight" for layer in (0, 1)]
    assert all(each in model.summary for each in floats_left), model.summary
    rounding = asked("test", "int4", 32, True)
    assert "2 rounded to int4, groups of 32" in QuantizedLlama.load(mixed, "float32", rounding).summary


def test_a_row_with_a_part_in_floats_is_in_floats(blocks, tmp_path):
    types = {"k_proj": Type.F32, "down_proj": Type.Q8_0}
    path = write(tmp_path / "model.gguf", blocks, lambda name: types.get(name.split(".")[-2], Type.Q4_0))
    model = QuantizedLlama.load(path, "float32")
    np.testing.assert_allclose(logits(model), logits(Llama.from_pretrained(path)), atol=1e-6)
    assert "3 in floats: layers.1.self_attn.qkv_proj.weight" in model.summary


@pytest.mark.parametrize("how", [("int8", 32, True), ("int4", 32, False)], ids=str)
@pytest.mark.parametrize("head", [None, Type.Q4_0, Type.Q4_1, Type.Q8_0], ids=str)
def test_a_tied_embedding_is_looked_up_in_the_heads_codes(blocks, tmp_path, monkeypatch, head, how):
    """Two vectors of the same codes: of a look-up, and of a product with a unit vector."""
    tensors = {name: value for name, value in gguf_files.tensors_of(blocks).items() if name != "lm_head.weight"}
    monkeypatch.setattr("tests.llama.gguf_files.tensors_of", lambda folder: tensors)
    path = write(tmp_path / "model.gguf", blocks, lambda name: head or Type.F32)
    model = QuantizedLlama.load(path, "float32", asked("test", *how))
    ids = paddle.to_tensor([0, 3, 511, 3])
    with paddle.no_grad():
        found, columns = model.lm_head.embed(ids, "float32").numpy(), model.lm_head(paddle.eye(64)).numpy()
    assert np.array_equal(found, columns.T[ids.numpy()])
    assert found.shape == (4, 64) and model.lm_head.weight.dtype == (
        "int4" if head in (Type.Q4_0, Type.Q4_1) else "int8"
    )


def run(command, *words):
    """A command with the words that the page has for it."""
    module = importlib.import_module(f"examples.llama2_13b.{command}")
    made = flags.parse(getattr(module, f"{command.capitalize()}Flags"), [str(word) for word in words], command)
    assert getattr(module, command)(made) == 0


def test_the_commands_of_the_page(blocks, mixed, tmp_path, capsys):
    """A file whose codes are kept, and a folder whose floats are rounded."""
    words = ("--output_path", tmp_path / "exported", "--dtype", "bfloat16", "--weight_dtype", "int4")
    run("export", "--model_name_or_path", mixed, *words)
    assert "in int4, groups of 32 with minimums, as stored" in capsys.readouterr().err
    run("predict", "--model_name_or_path", tmp_path / "exported", "a prompt", "--max_length", 2)
    words = ("--output_path", tmp_path / "int4", "--weight_dtype", "int4", "--group_size", 32)
    run("quantize", "--model_name_or_path", blocks, *words)
    assert "rounded to int4, groups of 32 with minimums" in capsys.readouterr().err


def last_scores(model, lengths):
    """Of rows with the tokens that `inputs` gives them, each alone."""
    tokens = inputs(*lengths).input_ids
    rows = np.split(tokens, np.cumsum(lengths)[:-1])
    with paddle.no_grad():
        return np.concatenate([model(paddle.to_tensor(row[None])).numpy()[:, -1] for row in rows])


def exported_scores(folder, lengths, dtype, without_passes=()):
    config = LlamaConfig.from_json(folder / "config.json")
    program = StaticProgram(folder, config, without_passes)
    return program(inputs(*lengths), KeyValueCache(config, dtype, 4, 32))


@pytest.mark.parametrize("how", [("int8", 32, True), ("int4", 16, False), ("int4", 0, True)], ids=str)
def test_an_exported_program_computes_with_the_codes(biased, tmp_path, how):
    """Of floats rounded on the way, and of a folder of these codes: the same bits, and the model's scores."""
    for name, source, more in (("a", biased, how), ("b", quantized(biased, tmp_path, *how), (None,))):
        export(ExportFlags(str(source), str(tmp_path / name), "float32", True, *more))
        program = (tmp_path / name / "model.json").read_text()
        assert "fusionkit_quantized_linear" in program and "fusionkit_fused_linear" not in program
    a, b = (exported_scores(tmp_path / name, (3, 17, 1), "float32") for name in "ab")
    assert np.array_equal(a, b)
    model = QuantizedLlama.load(tmp_path / "quantized", "float32")
    np.testing.assert_allclose(a, last_scores(model, (3, 17, 1)), atol=1e-5)


def test_codes_take_their_bytes_and_no_more(biased, tmp_path):
    sizes = {}
    for kind in (None, "int8", "int4"):
        export(ExportFlags(str(biased), str(tmp_path / str(kind)), "bfloat16", weight_dtype=kind))
        sizes[kind] = (tmp_path / str(kind) / "model.pdiparams").stat().st_size
        scores = exported_scores(tmp_path / str(kind), (5,), "bfloat16")
        np.testing.assert_allclose(scores, last_scores(Llama.from_pretrained(biased), (5,)), atol=0.1)
    of_layers = 2 * (64 * (4 + 2 * 2 + 4) * 16 + 3 * 64 * 96)  # matrices between embedding and head
    assert sizes["int8"] - sizes["int4"] == of_layers / 2
    assert sizes["int8"] < sizes[None]


@pytest.mark.parametrize("tied", [True, False])
def test_a_file_is_exported_with_its_codes(blocks, tmp_path, monkeypatch, tied):
    tensors = {
        name: value for name, value in gguf_files.tensors_of(blocks).items() if not tied or name != "lm_head.weight"
    }
    monkeypatch.setattr("tests.llama.gguf_files.tensors_of", lambda folder: tensors)
    types = {"v_proj": Type.Q8_0, "embed_tokens": Type.Q8_0, "lm_head": Type.Q8_0}
    path = write(tmp_path / "model.gguf", blocks, lambda name: types.get(name.split(".")[-2], Type.Q4_1))
    export(ExportFlags(str(path), str(tmp_path / "exported"), weight_dtype="int8"))
    scores = exported_scores(tmp_path / "exported", (4, 9), "float32")
    np.testing.assert_allclose(scores, last_scores(Llama.from_pretrained(path), (4, 9)), atol=1e-5)


def test_predict_and_serve_answer_with_codes(biased, tmp_path, capsys):
    """The words of the model in floats that are the codes' values; serve exports the folder itself."""
    source, answers = quantized(biased, tmp_path, "int8"), []
    Llama.from_pretrained(source).save_pretrained(tmp_path / "floats")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "floats" / name).write_bytes((source / name).read_bytes())
    for folder in (source, tmp_path / "floats"):
        export(ExportFlags(str(folder), str(tmp_path / "exported")))
        words = {"prompts": ("a b", "c"), "decode_strategy": "greedy_search", "max_length": 6}
        assert predict(PredictFlags(str(tmp_path / "exported"), **words)) == 0
        answers.append(capsys.readouterr().out.split("***********Source", 1)[1])
    assert answers[0] == answers[1]
    with exported(source, ServeFlags(str(source), weight_dtype="int8")) as folder:
        assert "fusionkit_quantized_linear" in (folder / "model.json").read_text()


def test_a_program_whose_products_round_their_input(biased, tmp_path):
    how = {"weight_dtype": "int4", "group_size": 16}
    scores, logs = [], []
    for activations in (None, "int8"):
        folder = tmp_path / str(activations)
        export(ExportFlags(str(biased), str(folder), "float32", **how, activations=activations))
        scores.append(exported_scores(folder, (3, 17, 1), "float32"))
        logs.append(StaticProgram(folder, LlamaConfig.from_json(folder / "config.json")).passes_log)
    assert all("x in int8" in line for line in logs[1][:-1]) and "x in int8" not in str(logs[0])
    for folder, given in zip(("None", "int8"), scores, strict=True):
        op_by_op = exported_scores(tmp_path / folder, (3, 17, 1), "float32", ["fuse_decoder_layer"])
        np.testing.assert_array_equal(given, op_by_op)
    assert logs[0][-1] == logs[1][-1] == "pass fuse_decoder_layer: 2 x decoder layer"
    far = np.abs(scores[1] - scores[0]).max() / np.abs(scores[0]).max()
    assert 1e-5 < far < 0.1, far
    model = QuantizedLlama.load(biased, "float32", asked("test", "int4", 16, False), activations="int8")
    near = np.abs(scores[1] - last_scores(model, (3, 17, 1))).max() / np.abs(scores[0]).max()
    assert near < far  # a code or two may be another where sums in float32 differ
    with exported(biased, ServeFlags(str(biased), weight_dtype="int4", activations="int8")) as folder:
        assert "x in int8" in str(StaticProgram(folder, LlamaConfig.from_json(folder / "config.json")).passes_log)


@pytest.mark.parametrize(
    "flags, rule",
    [
        ({"activations": "int8"}, "export: --activations must be left out, got int8; .* Give --weight_dtype"),
        ({"activations": "int4", "weight_dtype": "int4"}, "export: --activations must be int8 or left out, got 'int4'"),
        ({"weight_dtype": "fp8"}, "export: --weight_dtype must be int8 or int4, got 'fp8'"),
        ({"weight_dtype": "int4", "group_size": 33}, "export: --group_size must be 16, 32, 64, 128, or 0"),
    ],
)
def test_a_wrong_flag_names_the_right_ones(blocks, tmp_path, flags, rule):
    with pytest.raises(ValueError, match=rule):
        export(ExportFlags(str(blocks), str(tmp_path / "exported"), **flags))
    if flags.get("weight_dtype") == "fp8":
        with pytest.raises(ValueError, match="serve: --weight_dtype must be int8 or int4"):
            ServeFlags(str(blocks), **flags)

"""Models in 8 and 4 bits: from floats and GGUF files to folders and back, beside NumPy and the library `gguf`."""

from __future__ import annotations

import json
import shutil

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from safetensors import safe_open

from examples.llama2_13b.folders import checkpoint, quantized_folder, random_folder
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.folders.gguf_file import GGUFFile
from examples.llama2_13b.folders.layout import layout
from examples.llama2_13b.folders.model_folder import config_of, weights_of
from examples.llama2_13b.folders.quantization import Format, Quantization
from examples.llama2_13b.folders.quantized_reader import rounded, side_by_side
from examples.llama2_13b.model import Llama
from examples.llama2_13b.model.quantized_llama import QuantizedLlama
from examples.llama2_13b.quantize import QuantizeFlags, quantize
from tests.llama.conftest import EXAMPLE
from tests.llama.gguf_files import write
from tests.llama.quantized_models import quantized

BLOCKS = (Type.Q8_0, Type.Q4_0, Type.Q4_1)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def plain(tiny_folder):
    """Rows of 48 and 80: a last group that is shorter."""
    return tiny_folder


def floats(source):
    """Every tensor on disk."""
    table = layout(config_of(source))
    reader = checkpoint.Reader(source, table)
    return {part.name: reader.tensor(part.name) for row in table.values() for part in row.parts}


@pytest.mark.parametrize("kind", BLOCKS, ids=lambda kind: kind.name)
def test_codes_of_a_file_are_its_values_in_hugging_faces_order(blocks, tmp_path, kind):
    """Bit by bit those that the library gives, q and k in the order that the rows of floats have."""
    file = GGUFFile(write(tmp_path / "model.gguf", blocks, lambda name: kind))
    for name in (
        f"model.layers.1.{module}.weight" for module in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj")
    ):
        codes = file.quantized(name)
        assert codes is not None and (codes.dtype == "int8") == (kind == Type.Q8_0)
        whole = file.read(name, tuple(slice(0, size) for size in file.shape(name)))
        assert np.array_equal(codes.dequantize().astype(np.float32).T, whole)
    assert file.quantized("model.norm.weight") is None


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("group_size, symmetric", [(16, False), (32, True), (0, False), (0, True)])
def test_a_folder_keeps_what_was_rounded(plain, tmp_path, dtype, group_size, symmetric):
    output = quantized(plain, tmp_path, dtype, group_size, symmetric)
    before, after = floats(plain), floats(output)
    assert before.keys() == after.keys()
    for name, weight in before.items():
        if weight.ndim == 2:
            kind = "int8" if name in (EMBEDDING, HEAD) else dtype
            weight = rounded(weight.T, Format(kind, group_size or None, symmetric)).dequantize().T.astype(np.float32)
        assert np.array_equal(weight, after[name]), name


def test_a_part_is_that_of_the_whole(plain, tmp_path):
    files = weights_of(quantized(plain, tmp_path, "int4"))
    for name in ("model.layers.0.mlp.down_proj.weight", HEAD):
        rows, columns = floats(tmp_path / "quantized")[name].shape
        whole = files.read(name, (slice(0, rows), slice(0, columns)))
        assert np.array_equal(files.read(name, (slice(5, 31), slice(7, 40))), whole[5:31, 7:40])


def test_the_files_are_as_the_page_says(plain, tmp_path):
    output = quantized(plain, tmp_path, "int4", 32, False)
    name = "model.layers.0.mlp.down_proj.weight"  # [48, 80]
    index = json.loads((output / "model.safetensors.index.json").read_text())["weight_map"]
    with safe_open(output / index[f"{name}.codes"], framework="np") as file:
        pairs, scales, minimums = (file.get_tensor(f"{name}.{kind}") for kind in ("codes", "scales", "minimums"))
    assert (pairs.shape, pairs.dtype, scales.shape, scales.dtype) == ((48, 40), np.uint8, (48, 3), np.float16)
    row, column = 11, 37
    code = int(pairs[row, column // 2]) >> 4
    value = code * float(scales[row, column // 32]) + float(minimums[row, column // 32])
    assert value == floats(output)[name][row, column]
    said = json.loads((output / "config.json").read_text())["quantization_config"]
    in_8_bits = {"dtype": "int8", "group_size": 32, "symmetric": False}
    assert said == {"quant_method": "fusionkit", "dtype": "int4", "group_size": 32, "symmetric": False,
                    "exceptions": {EMBEDDING: in_8_bits, HEAD: in_8_bits}}  # fmt: skip


def test_nothing_is_rounded_twice(mixed, tmp_path):
    """A file to a folder, and that to another: floats alone change, once."""
    first = quantized(mixed, tmp_path, "int8", 32, True)
    second = tmp_path / "again"
    quantize(QuantizeFlags(str(first), str(second), "int4"))
    whole, once, twice = floats(mixed), floats(first), floats(second)
    for name, weight in whole.items():
        assert np.array_equal(once[name], twice[name])
        assert np.array_equal(weight, once[name]) == ("down_proj" not in name), name
    assert config_of(first) == config_of(mixed)


def test_neighbours_of_one_format_are_joined_and_no_others():
    random = np.random.default_rng(0)
    forms = [("int4", 32, False), ("int4", 32, False), ("int4", 16, False), ("int8", 16, True), ("int8", 16, True)]
    parts = [
        rounded(random.standard_normal((70, width)), Format(*form))
        for width, form in zip((3, 5, 1, 2, 4), forms, strict=True)
    ]
    joined = side_by_side(parts)
    assert [each.shape for each in joined] == [(70, 8), (70, 1), (70, 6)]
    expected = np.concatenate([part.dequantize() for part in parts], axis=1)
    assert np.array_equal(np.concatenate([each.dequantize() for each in joined], axis=1), expected)


def test_random_codes_are_normal_and_follow_the_seed_alone(tmp_path):
    config = LlamaConfig.from_json(EXAMPLE / "configs" / "tiny.json")
    rounding = Quantization.rounded_to(Format("int4", 32, False))
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        random_folder.write(tmp_path / name, config, rounding, seed)
    a, b, c = (floats(tmp_path / name) for name in "abc")
    for name, weight in a.items():
        assert np.array_equal(weight, b[name])
        assert np.array_equal(weight, c[name]) == (weight.ndim == 1)
    matrices = np.concatenate([weight.ravel() for weight in a.values() if weight.ndim == 2])
    assert abs(matrices.std() / config.initializer_range - 1) < 0.02 and abs(matrices.mean()) < 0.001
    assert (a["model.norm.weight"] == 1).all()


def test_no_more_than_a_file_is_held(tmp_path, monkeypatch):
    """However many layers there are: no file has more than one layer's tensors here, and each is asked for once."""
    config = LlamaConfig.from_json(EXAMPLE / "configs" / "tiny.json")
    monkeypatch.setattr(quantized_folder, "FILE_BYTES", 20_000)
    most = []
    save = quantized_folder.safetensors_folder._save
    monkeypatch.setattr(
        quantized_folder.safetensors_folder,
        "_save",
        lambda tensors, path: (most.append(sum(each.nbytes for each in tensors.values())), save(tensors, path)),
    )
    random_folder.write(tmp_path / "a", config, Quantization.rounded_to(Format("int4", 32, False)), 1)
    assert len(most) == 5 and max(most) < 40_000  # the embedding is larger than a file should be


@pytest.mark.parametrize(
    "change, rule",
    [
        ({"quant_method": "gptq", "bits": 4}, r'quantization_config.quant_method must be "fusionkit", got "gptq"'),
        ({"bits": 4}, r'quantization_config.quant_method must be "fusionkit", got null'),
        ([4], r'quantization_config.quant_method must be "fusionkit", got \[4\]'),
        ({"dtype": "int3"}, 'quantization_config.dtype must be int8 or int4, got "int3"'),
        ({"group_size": 48}, "group_size must be 16, 32, 64, 128 or null, got 48"),
        ({"symmetric": 1}, "symmetric must be true or false, got 1"),
        ({"exceptions": {"a": {"dtype": "int8"}}}, "exceptions.a.group_size must be .*, got none"),
        ({"exceptions": [1]}, "exceptions must be a JSON object"),
    ],
)
def test_a_field_that_cannot_be_is_refused_by_name(plain, tmp_path, change, rule):
    output = quantized(plain, tmp_path, "int4")
    fields = json.loads((output / "config.json").read_text())
    ours = isinstance(change, dict) and not {"quant_method", "bits"} & change.keys()
    fields["quantization_config"] = {**fields["quantization_config"], **change} if ours else change
    (output / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=rf"config.json: {'.*' if ours else ''}{rule}"):
        Llama.from_pretrained(output)


def test_a_folder_that_says_something_else_than_its_files_is_refused(plain, tmp_path):
    output = quantized(plain, tmp_path, "int4")
    fields = json.loads((output / "config.json").read_text())
    for change, rule in (
        ({"dtype": "int8"}, r"q_proj.weight.codes must be \[48, 48\], got \[48, 24\]"),
        ({"symmetric": True}, "minimums and 11 more must not be there"),
        ({"group_size": 16}, r"scales must be \[48, 3\], got \[48, 2\]"),
        (None, "q_proj.weight, .* and 13 more must be there, got none"),
    ):
        changed = {**fields, "quantization_config": change and {**fields["quantization_config"], **change}}
        (output / "config.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=rule):
            QuantizedLlama.load(output, "float32")


@pytest.mark.parametrize(
    "how, rule",
    [
        (("int3",), "quantize: --weight_dtype must be int8 or int4, got 'int3'"),
        (("int4", 20), "quantize: --group_size must be 16, 32, 64, 128, or 0 for a whole column, got 20"),
    ],
)
def test_a_wrong_flag_names_the_right_ones(plain, tmp_path, how, rule):
    with pytest.raises(ValueError, match=rule):
        quantize(QuantizeFlags(str(plain), str(tmp_path / "out"), *how))
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_folder_with_something_in_it_is_not_written_to(plain, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="--output_path must be empty or not there"):
        quantize(QuantizeFlags(str(plain), str(tmp_path), "int4"))


def test_an_adapter_is_merged_into_floats(plain, tmp_path, few_samples, no_measuring, no_drawing):
    """A folder of codes is trained as the floats that it stands for, and what is written of them is in floats."""
    from examples.llama2_13b.lora import LoraFlags, lora
    from examples.llama2_13b.merge import MergeFlags, merge

    source = quantized(plain, tmp_path, "int8")
    flags = {"model_name_or_path": str(source), "dataset_name_or_path": str(few_samples), "max_steps": 1}
    lora(LoraFlags(**flags, output_dir=str(tmp_path / "lora"), src_length=100, max_length=256, zero_padding=True))
    merge(MergeFlags(str(source), str(tmp_path / "lora"), str(tmp_path / "merged")))
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    assert Llama.from_pretrained(tmp_path / "merged").stored_dtypes[HEAD] == "F32"
    shutil.rmtree(tmp_path / "merged")


def test_the_library_wrote_the_types_that_were_asked_for(mixed):
    assert {tensor.tensor_type for tensor in gguf.GGUFReader(mixed).tensors} == {*BLOCKS, Type.F16, Type.F32}

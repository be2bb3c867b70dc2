"""Weights of exported programs, packed when a program is loaded for the host."""

from __future__ import annotations

import json
import os

import numpy as np
import paddle
import pytest
from fusionkit_backends.cpu import runtime
from paddle.static import InputSpec

import fusionkit as fk
from fusionkit import passes
from fusionkit.nn import LanguageModelHead, Linear, QuantizedLinear
from fusionkit.passes import files, host, neutral, packing, parameters, written
from fusionkit.passes.steps import Passes
from fusionkit.quantized_weight import quantize

ROWS = (1, 2, 7, 8, 9, 16, 33, 70)
IDS = np.arange(70) % 97
NO_LAYER = "pass fuse_decoder_layer: 0 x decoder layer"


class Tied(paddle.nn.Layer):
    """An embedding and a head that share one parameter, with two products between them, one of them with a bias."""

    def __init__(self, dtype):
        super().__init__()
        paddle.seed(3)
        self.head, self.up, self.down = LanguageModelHead(48, 97, 1.0), Linear(48, 80, bias=True), Linear(80, 48)
        self.up.bias.set_value(paddle.randn([80]))
        self.dtype = dtype
        for layer in (self.head, self.up, self.down):
            layer.to(dtype=dtype)

    def forward(self, ids):
        return self.head(self.down(self.up(self.head.embed(ids, self.dtype))))


def exported(folder, layer, spec, invariant=True):
    with fk.use_batch_invariant(invariant):
        passes.export(layer, folder / "model", [spec])
    return folder / "model"


def tied(folder, dtype="float32", invariant=True):
    return exported(folder, Tied(dtype), InputSpec([-1], "int64", "ids"), invariant)


def run(program, rows):
    return program([paddle.to_tensor(IDS[:rows])])[0].numpy()


def bits(array):
    return np.ascontiguousarray(array).view(np.uint8)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_weights_change_no_bit(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(packing.Packing, "_doubles", lambda self, dtype: False)
    path = tied(tmp_path, dtype)
    packed, plain = passes.load(path), passes.load(path, without=["pack_weights"])
    assert packed.log == [f"pass pack_weights: 3 x weight in {dtype}", NO_LAYER] and packed.input_names == ["ids"]
    want = run(plain, ROWS[-1])
    assert np.abs(want).max() > 0.1
    for rows in ROWS:
        np.testing.assert_array_equal(bits(run(packed, rows)), bits(want[:rows]))


def test_the_program_agrees_with_float64(tmp_path):
    layer = Tied("float32")
    embedding, weights = layer.head.weight.numpy(), [each.weight.numpy() for each in (layer.up, layer.down, layer.head)]
    want = fk.fused_linear.reference(embedding.T[IDS], weights[0], layer.up.bias.numpy())
    for weight in weights[1:]:
        want = want @ weight.astype(np.float64)
    got = run(passes.load(exported(tmp_path, layer, InputSpec([-1], "int64", "ids"))), len(IDS))
    assert np.abs(got - want).max() < 1e-5 * np.sqrt(np.mean(want**2))


def test_the_predictor_gets_the_packs_and_what_else_reads_a_weight(tmp_path):
    with host.prepared(tied(tmp_path), neutral.load(), Passes(())) as ready:
        program = json.loads(ready.program.read_text())
        operations = [each["#"].partition(".")[2] for each in program["program"]["regions"][0]["blocks"][0]["ops"]]
        left = ready.parameters.stat().st_size
        folder = ready.program.parent
    assert operations.count(packing.PACKED) == 3 and not {"fusionkit_fused_linear", "fusionkit_fused_linear_bias"} & {
        *operations
    }
    assert left < 4 * (48 * 97 + 80) + 100 < (tmp_path / "model.pdiparams").stat().st_size  # embedding and bias
    assert not folder.exists()


def test_the_packs_are_what_is_multiplied(tmp_path, monkeypatch):
    """Break the packs on purpose: the results are others."""
    path = tied(tmp_path)
    want = run(passes.load(path), 5)
    made = packing.Packing._made
    monkeypatch.setattr(packing.Packing, "_made", lambda self, weight, **how: made(self, weight * 2, **how))
    assert not np.allclose(run(passes.load(path), 5), want)


@pytest.mark.parametrize("dtype, invariant, reason", [
    ("float16", True, "float16, for float16"), ("float32", False, "its products need not be batch invariant"),
])  # fmt: skip
def test_weights_that_are_left_are_named_with_the_reason(dtype, invariant, reason, tmp_path):
    layer, spec = Linear(48, 80), InputSpec([-1, 48], dtype, "x")
    layer.to(dtype=dtype)
    loaded = passes.load(exported(tmp_path, layer, spec, invariant))
    assert loaded.log == [f"pass pack_weights: 1 x weight left as it is: {reason}", NO_LAYER]
    x = paddle.ones([2, 48]).cast(dtype)
    want = passes.load(tmp_path / "model", without=["all"])([x])[0]
    np.testing.assert_array_equal(loaded([x])[0].numpy(), want.numpy())


def test_a_pack_in_twice_the_bytes_is_not_made(native, tmp_path):
    native.set_isa("avx2" if "avx2" in runtime.native().available_isas() else "portable")
    loaded = passes.load(tied(tmp_path, "bfloat16"))
    assert loaded.log == [
        "pass pack_weights: 3 x weight left as it is: its pack would take twice the bytes on this processor",
        NO_LAYER,
    ]


@pytest.mark.parametrize(
    "dtype, group_size, symmetric", [("int8", 16, True), ("int4", 32, False), ("int4", None, True)]
)
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_codes_are_packed_too(kind, dtype, group_size, symmetric, tmp_path):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((83, 70)).astype(np.float32)
    bias = rng.standard_normal(70).astype(np.float32) if symmetric else None
    layer = QuantizedLinear(quantize(weight, dtype, group_size, symmetric), bias)
    path = exported(tmp_path, layer, InputSpec([-1, 83], kind, "x"), invariant=False)
    packed, plain = passes.load(path), passes.load(path, without=["all"])
    assert packed.log == [f"pass pack_weights: 1 x weight in {dtype}", NO_LAYER]
    x = paddle.to_tensor(rng.standard_normal((70, 83)).astype(np.float32)).cast(kind)
    want = plain([x])[0].cast("float32").numpy()
    assert np.abs(want).max() > 1
    for rows in ROWS:
        np.testing.assert_array_equal(packed([x[:rows]])[0].cast("float32").numpy(), want[:rows])


def without_attribute(path, name):
    """As programs are that were written before their ops had it."""
    file = files.with_suffix(path, files.PROGRAM)
    program = json.loads(file.read_text())
    for entry in (each for each in written.entries(program) if each["#"] != written.PARAMETER):
        entry["A"] = [each for each in entry["A"] if each["N"] != name]
    file.write_text(json.dumps(program))
    sizes = files.with_suffix(path, files.SIZES)
    said = json.loads(sizes.read_text())
    said[file.name] = {"bytes": file.stat().st_size, "crc32": files.checksum(file)}
    sizes.write_text(json.dumps(said))


@pytest.mark.parametrize("name", ["rounds_x", "batch_invariant"])
def test_programs_from_before_an_attribute_are_loaded(name, tmp_path):
    weight = np.random.default_rng(0).standard_normal((83, 70)).astype(np.float32)
    layer = QuantizedLinear(quantize(weight, "int8", 16)) if name == "rounds_x" else Linear(83, 70)
    path, x = exported(tmp_path, layer, InputSpec([-1, 83], "float32", "x"), False), paddle.ones([3, 83])
    ways = (passes.load, lambda path: passes.load(path, without=["all"]), passes.create_predictor)
    want = [(way(path).run([x]))[0].numpy() for way in ways]
    without_attribute(path, name)
    for way, expected in zip(ways, want, strict=True):
        np.testing.assert_array_equal(way(path).run([x])[0].numpy(), expected)


def test_a_file_of_other_parameters_is_refused(tmp_path):
    path = tied(tmp_path)
    file = path.with_suffix(".pdiparams")
    with pytest.raises(ValueError, match="must be records of 2 parameters, got"):
        parameters.read(file, ["a", "b"])
    with open(file, "r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.truncate()
    with pytest.raises(ValueError, match="truncated"):
        passes.load(path)

"""Whole decoder layers as one op on the host: which layers, left out by name, and the bits of the ops by themselves."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import paddle
import pytest
from fusionkit_backends.cpu.passes import passes as cpu

import fusionkit as fk
from examples.llama2_13b.generate.decode_step import DecodeStep, narrow_matrices
from examples.llama2_13b.generate.key_value_cache import KeyValueCache
from examples.llama2_13b.generate.step_inputs import Part, collate
from examples.llama2_13b.model.llama import MLP, Llama
from fusionkit import passes
from fusionkit.passes import host, neutral, written
from tests.test_passes import CONFIG

NAME = "fuse_decoder_layer"
# 51 is no multiple of a vector: rows have ends of their own.
PLAIN = dataclasses.replace(CONFIG, num_hidden_layers=2, intermediate_size=51)
CONFIGS = {
    "grouped heads": PLAIN,
    "biases": dataclasses.replace(PLAIN, attention_bias=True),
    "a window": dataclasses.replace(PLAIN, model_type="mistral", sliding_window=4),
    "one layer": dataclasses.replace(PLAIN, num_hidden_layers=1, num_key_value_heads=1),
}


def export(folder, config=PLAIN, dtype="float32", invariant=True, change=lambda model: None, cache_dtype=None):
    paddle.seed(5)
    model = Llama(config, dtype)
    for name, each in model.named_parameters():
        if "bias" in name or "norm" in name:
            each.set_value(1 + 0.3 * paddle.randn(each.shape))
    change(model)
    narrow_matrices(model)
    step = DecodeStep(model, cache_dtype)
    with fk.use_batch_invariant(invariant):
        passes.export(step, folder / "model", step.input_spec())
    return folder / "model"


def run(program, config, dtype):
    """Scores and caches after two steps: rows in prefill, then rows in decode beside parts of prompts."""
    cache = KeyValueCache(config, dtype, 8, 4)
    steps = (
        [Part([1, 5, 9, 30, 2], 0, [0, 1]), Part([8], 0, [2])],
        [Part([7], 5, [0, 1]), Part([7, 6], 1, [2]), Part([3, 4], 0, [3])],
    )
    logits = [program(inputs(program.input_names, rows, cache))[0].numpy() for rows in steps]
    return logits, [each.cast("float32").numpy() for each in (*cache.keys, *cache.values)]


def inputs(names, rows, cache):
    tensors = {name: paddle.to_tensor(array) for name, array in vars(collate(rows)).items()}
    tensors |= {f"key_cache_{layer}": keys for layer, keys in enumerate(cache.keys)}
    tensors |= {f"value_cache_{layer}": values for layer, values in enumerate(cache.values)}
    return [tensors[name] for name in names]


def ops_of(path, **given):
    """Names of the custom ops that Paddle's predictor gets."""
    with host.prepared(path, neutral.load(), cpu, **given) as ready:
        names = [written.name_of(each) for each in written.entries(json.loads(ready.program.read_text()))]
    return [name.removeprefix(neutral.PREFIX) for name in names if name.startswith(neutral.PREFIX)]


def assert_same(one, other):
    for ours, theirs in zip(one[0] + one[1], other[0] + other[1], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert np.abs(one[0][1]).max() > 0.3


@pytest.mark.parametrize("kind, dtype, invariant", [
    ("grouped heads", "float32", True), ("grouped heads", "float32", False), ("biases", "float32", True),
    ("a window", "bfloat16", True), ("one layer", "float16", True),
])  # fmt: skip
def test_fused_layers_have_the_bits_of_their_ops(kind, dtype, invariant, tmp_path):
    config = CONFIGS[kind]
    layers = config.num_hidden_layers
    path = export(tmp_path, config, dtype, invariant)
    fused = passes.load(path, num_layers=layers)
    assert fused.log[-1] == f"pass {NAME}: {layers} x decoder layer"
    product = "fused_linear_packed" if any("weight in" in line for line in fused.log) else "fused_linear"
    assert ops_of(path) == ["decoder_layer_"] * layers + ["fusion_add_rms_norm", product]
    assert_same(run(fused, config, dtype), run(passes.load(path, without=[NAME]), config, dtype))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return export(tmp_path_factory.mktemp("plain"))


def test_weights_need_no_packs(path):
    program = passes.load(path, without=["pack_weights"])
    assert program.log == ["pass pack_weights: left out", f"pass {NAME}: 2 x decoder layer"]
    assert_same(run(program, PLAIN, "float32"), run(passes.load(path, without=["all"]), PLAIN, "float32"))


def test_it_is_left_out_by_its_name_and_by_all(path):
    assert passes.load(path, without=[NAME]).log == [
        "pass pack_weights: 9 x weight in float32", f"pass {NAME}: left out"
    ]  # fmt: skip
    assert "decoder_layer_" not in ops_of(path, without=[NAME])
    assert "decoder_layer_" not in ops_of(path, without=["all"])


class Exchanged(MLP):
    def forward(self, x_TH):
        up_TI, gate_TI = paddle.split(self.gate_up_proj(x_TH), 2, axis=-1)
        return self.down_proj(fk.swiglu(gate_TI, up_TI))


def exchange(model):
    model.layers["1"].mlp.__class__ = Exchanged


def test_a_layer_that_differs_is_named_and_none_is_fused(tmp_path):
    path = export(tmp_path, change=exchange)
    program = passes.load(path, num_layers=2)
    assert program.log[1].startswith(f"pass {NAME}: 0 x decoder layer; after split_with_num at /DecoderLayer")
    assert "must come g = fk.swiglu(gate, up), got fk.swiglu at /DecoderLayer" in program.log[1]
    assert program.log[1].endswith("(layer 2). Nothing was rewritten")
    assert "decoder_layer_" not in ops_of(path)
    assert_same(run(program, PLAIN, "float32"), run(passes.load(path, without=["all"]), PLAIN, "float32"))


def test_the_configurations_layers_must_all_be_there(path):
    assert passes.load(path, num_layers=4).log[1] == f"pass {NAME}: 0 x decoder layer; the program has 2"
    assert "decoder_layer_" not in ops_of(path, num_layers=4)


def test_a_cache_of_int8_is_left_as_it_is(tmp_path):
    program = passes.load(export(tmp_path, cache_dtype="int8"))
    assert program.log[1].startswith("no pass is run, every op runs by itself: its op takes no cache of int8 (2 times")


def test_a_layer_that_is_called_wrongly_says_so(path):
    program, cache = passes.load(path), KeyValueCache(PLAIN, "float32", 2, 4)
    given = inputs(program.input_names, [Part([1, 2], 0, [7])], cache)
    with pytest.raises(ValueError, match="paged_attention: block_tables must be between 0 and 1"):
        program(given)

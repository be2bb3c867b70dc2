"""Passes: the notation of patterns, whole layers or nothing, refusals by name, and programs run op by op on the host.

npu's own passes rewrite a real export here. What they give when they run is told by tests/emulator/loaded_programs.py.
"""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from fusionkit_backends.npu.passes import passes as npu

import fusionkit as fk
from examples.llama2_13b.bench import step_ops
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.generate.decode_step import DecodeStep, narrow_matrices
from examples.llama2_13b.generate.key_value_cache import KeyValueCache
from examples.llama2_13b.generate.step_inputs import Part, collate
from examples.llama2_13b.model.llama import Llama
from fusionkit import passes
from fusionkit.errors import FusionkitError
from fusionkit.passes import elementary, reading, running
from fusionkit.passes.pattern import Failure, matches
from fusionkit.passes.program import Operation, Program, Type
from fusionkit.passes.steps import Passes, Rule, Step, rewritten

CONFIG = LlamaConfig(
    vocab_size=40,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=32,
    rms_norm_eps=1e-5,
    initializer_range=0.15,
)


def export(folder, dtype, config=CONFIG):
    model = Llama(config, dtype)
    narrow_matrices(model)
    step = DecodeStep(model)
    passes.export(step, folder / "model", step.input_spec())
    return folder / "model"


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    return export(tmp_path_factory.mktemp("half"), "float16")


@pytest.fixture
def program(half):
    return reading.read(half, "cpu")[0]


def toy(*lines, outputs, types=None):
    """A program over input 0 and parameter 1: lines are (name, inputs, outputs) and attributes."""
    operations = [Operation(name, inputs, results, given, f"/{name}/") for name, inputs, results, given in lines]
    return Program(operations, {"x": 0}, {1: "w"}, {2: [4]}, list(outputs), types or {})


SQUARE = (("double", (0,), (3,), {"times": 2}), ("square", (3, 1), (4, 5), {"times": 2}), ("root", (4,), (6,), {}))


def found(program, pattern):
    return [match.values for match in matches(program, pattern)]


def test_a_pattern_names_values_and_attributes():
    program = toy(*SQUARE, outputs=[6])
    (match,) = matches(program, "d = double(a) times=n\ns = square(d, w) times=n\ny = root(s)")
    assert (match.values["a"], match.values["w"], match.values["y"], match.attributes) == (0, 1, 6, {"n": 2})
    assert found(program, "d = double(a) times=2") and not found(program, "d = double(a) times=3")
    assert not found(program, "d = double(a)\ny = root(d)")
    assert not found(program, "s = square(d, d)"), "one name is one value"


@pytest.mark.parametrize(
    "pattern, is_found",
    [
        ("s = square(d)", False),
        ("s = square(d, *)", True),
        ("s = square(d, w, b?)", True),
        ("s, _ = square(d, w)", True),
        ("_ = square(d, w)", False),  # the root reads it
    ],
)
def test_inputs_and_outputs_that_need_not_be_there(pattern, is_found):
    assert bool(found(toy(*SQUARE, outputs=[6]), pattern)) == is_found


def test_views_and_constants_are_not_written_down():
    lines = (("reshape", (0, 2), (3,), {}), ("cast", (3,), (4,), {"dtype": "float32"}), ("double", (4, 2), (5,), {}))
    types = {3: Type("float32", (4,)), 4: Type("float32", (4,))}
    assert found(toy(*lines, outputs=[5], types=types), "y = double(x)") == [{"x": 0, "y": 5}]
    types[3] = Type("float16", (4,))
    assert found(toy(*lines, outputs=[5], types=types), "y = double(x)") == [{"x": 4, "y": 5}]


@pytest.mark.parametrize("outputs, more", [([6, 3], ()), ([6, 7], (("other", (3,), (7,), {}),))])
def test_a_match_whose_inner_value_is_read_outside_is_none(outputs, more):
    failure = Failure()
    pattern = "d = double(a)\ns = square(d, w)\ny = root(s)"
    assert not list(matches(toy(*SQUARE, *more, outputs=outputs), pattern, failure))
    assert "after double at /double/ must come no reader besides" in str(failure)
    assert found(toy(*SQUARE, *more, outputs=outputs), f"with {pattern}"), "what is kept may have other readers"


def test_a_line_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"a line of a pattern must be 'y = op\(x\) attribute=value', got 'y <- op'"):
        found(toy(*SQUARE, outputs=[6]), "y <- op")


def test_a_step_rewrites_a_copy():
    program = toy(*SQUARE, outputs=[6])
    rule = Rule("s = square(d, w) times=n\ny = root(s)", "m = toy.double(d, w)\ny = toy.half(m) times=n much=0.5")
    result, log = rewritten(program, Passes((Step("first", (rule,), "root of a square"),)))
    assert [each.name for each in program.operations] == ["double", "square", "root"]
    assert [each.name for each in result.operations] == ["double", "toy.double", "toy.half"]
    assert result.operations[-1].attributes == {"times": 2, "much": 0.5} and result.operations[-1].outputs == (6,)
    assert log == ["pass first: 1 x root of a square"]
    sizes = "y = toy.double(d, None, w) rows=w.shape[0] shape=w.shape"
    program.types[1] = Type("float32", (2, 3))
    (sized,) = rewritten(program, Passes((Step("first", (Rule(rule.pattern, sizes),), "root"),)))[0].operations[1:]
    assert sized.inputs == (3, None, 1) and sized.attributes == {"rows": 2, "shape": [2, 3]}
    result, log = rewritten(program, Passes((Step("first", (rule,), "root"),)), ["first"])
    assert log == ["pass first: left out"] and len(result.operations) == 3
    with pytest.raises(ValueError, match="without must be of first or all, got 'frist'"):
        rewritten(program, Passes((Step("first", (rule,), "root"),)), ["frist"])


def change(program, op, number, /, **changes):
    """Replace fields of the operation with this name and number."""
    old = [each for each in program.operations if each.name == op][number]
    fields = {**vars(old), **changes}
    program.replace([old], [Operation(**fields)])
    return old


def without_attention_residual(program):
    old = [each for each in program.operations if each.name == "fk.fusion_add_rms_norm"][2]
    x, residual, weight = old.inputs
    program.replace([old], [Operation("fk.fusion_rms_norm", (x, weight), old.outputs, old.attributes, old.place)])


def with_residual_of_an_earlier_layer(program):
    norms = [each for each in program.operations if each.name == "fk.fusion_add_rms_norm"]
    change(program, "fk.fusion_add_rms_norm", 3, inputs=(norms[3].inputs[0], norms[1].outputs[1], norms[3].inputs[2]))


def with_another_activation(program):
    change(program, "fk.swiglu", 1, name="gelu")


def with_gate_and_up_exchanged(program):
    gate, up = next(each for each in program.operations if each.name == "fk.swiglu").inputs
    change(program, "fk.swiglu", 0, inputs=(up, gate))


def with_another_epsilon(program):
    change(program, "fk.fusion_add_rms_norm", 2, attributes={"epsilon": 1e-3})


def with_unturned_keys(program):
    rope = [each for each in program.operations if each.name == "fk.fusion_rope"][1]
    attention = [each for each in program.operations if each.name == "fk.paged_attention"][1]
    change(program, "fk.paged_attention", 1, inputs=(attention.inputs[0], rope.inputs[1], *attention.inputs[2:]))


def with_an_inner_value_given_out(program):
    program.outputs.append([each for each in program.operations if each.name == "fk.swiglu"][1].outputs[0])


def with_other_rows(program):
    change(program, "gather", 0, name="index_sample")


@pytest.mark.parametrize(
    "differ, layer, text",
    [
        (without_attention_residual, 2, r"s = add\(o, x\), got fk.fusion_rms_norm at /DecoderLayer\w*/RMSNorm_1/"),
        (with_residual_of_an_earlier_layer, 2, r"y = add\(d, s\), got add at /DecoderLayer"),
        (with_another_activation, 2, r"g = fk.swiglu\(gate, up\), got gelu at /DecoderLayer\w*/MLP/"),
        (with_gate_and_up_exchanged, 1, r"g = fk.swiglu\(gate, up\), got fk.swiglu at /DecoderLayer\w*/MLP/"),
        (with_another_epsilon, 2, r"m = fk.fusion_rms_norm\(s, ffn_norm\) epsilon=epsilon, got fk.fusion_rms_norm"),
        (with_unturned_keys, 2, r"a = fk.paged_attention\(q_turned.*, got .*fk.paged_attention at /DecoderLayer"),
        (with_an_inner_value_given_out, 2, r"after fk.swiglu at .* no reader besides .*, got the program's output"),
        (with_other_rows, 3, r"rows = gather\(wide, last\), got index_sample"),
    ],
)
def test_a_layer_that_differs_is_refused_by_name_and_nothing_is_rewritten(program, differ, layer, text):
    differ(program)
    before = list(program.operations)
    with pytest.raises(fk.FusionkitError, match=rf"each of the 3 layers must match .* \(layer {layer}\)") as refusal:
        rewritten(program, npu, num_layers=3)
    assert refusal.match(text)
    assert program.operations == before


def test_the_configurations_layers_must_all_be_there(program):
    with pytest.raises(fk.FusionkitError, match="each of the 4 layers must match as a whole, got 3 that do: the progr"):
        rewritten(program, npu, num_layers=4)
    result, _ = rewritten(program, npu, num_layers=3)
    flags = [each.attributes["flag"] for each in result.operations if each.name == "npu.decoder_layer"]
    assert flags == [1, 0, 2]


def with_bias(program, product):
    old = [each for each in program.operations if each.name == "fk.fused_linear"][product]
    program.parameters[bias := program.new_value()] = "bias"
    change(program, "fk.fused_linear", product, inputs=(*old.inputs, bias))
    return bias


def test_a_bias_of_q_k_and_v_goes_along(program):
    bias = with_bias(program, 4)
    result, _ = rewritten(program, npu)
    layers = [each for each in result.operations if each.name == "npu.decoder_layer"]
    assert [bias in layer.inputs for layer in layers] == [False, True, False]


def reduced(program):
    linear = [each for each in program.operations if each.name == "fk.fused_linear"][1]
    change(program, "fk.fused_linear", 1, name="fk.matmul_all_reduce", attributes={**linear.attributes, "ring_id": 0})


def with_a_wide_matrix(program):
    weight = [each for each in program.operations if each.name == "fk.fused_linear"][3].inputs[1]
    program.types[weight] = Type("float32", program.types[weight].shape)


def with_window(program):
    scale = next(each for each in program.operations if each.name == "fk.paged_attention").attributes
    change(program, "fk.paged_attention", 0, attributes={**scale, "window": 8})


def with_wide_heads(program):
    weight = [each for each in program.operations if each.name == "fk.fused_linear"][1].inputs[1]
    program.types[weight] = Type("float16", (64, 32))


@pytest.mark.parametrize(
    "differ, reason",
    [
        (reduced, "has no sum over cards inside a layer: tensor parallelism"),
        (lambda program: with_bias(program, 1), "has a bias for q, k and v only"),
        (lambda program: with_bias(program, 7), "has a bias for q, k and v only"),
        (
            lambda program: change(program, "fk.paged_attention", 1, attributes={"scale": 0.3}),
            r"scales scores by 1 / sq",
        ),
        (with_a_wide_matrix, "takes float16 only (1 times, first fk.fused_linear"),
        (with_window, "without further arguments"),
        (with_wide_heads, "needs hidden_size = heads"),
    ],
)
def test_what_the_vendors_op_cannot_leaves_the_program_alone_and_says_why(program, differ, reason):
    differ(program)
    result, log = rewritten(program, npu, num_layers=3)
    assert result is program
    assert (
        len(log) == 1 and log[0].startswith("no pass is run, every op runs by itself: fused_blha") and reason in log[0]
    )


def inputs_of(names, rows, cache):
    tensors = {name: paddle.to_tensor(array) for name, array in vars(collate(rows)).items()}
    tensors |= {f"key_cache_{layer}": keys for layer, keys in enumerate(cache.keys)}
    tensors |= {f"value_cache_{layer}": values for layer, values in enumerate(cache.values)}
    return [tensors[name] for name in names]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_op_by_op_on_the_host_gives_the_predictors_bits(dtype, tmp_path):
    path = export(tmp_path, dtype)
    program, tensors = reading.read(path, "cpu")
    ways = [running.Running(program, tensors, "cpu", {}), passes.load(path)]
    results = []
    for way in ways:
        cache = KeyValueCache(CONFIG, dtype, 8, 4)
        rows = [Part([1, 5, 9, 30, 2], 0, [0, 1]), Part([8], 0, [2])]
        first = way(inputs_of(way.input_names, rows, cache))[0].numpy()
        rows = [Part([7], 5, [0, 1]), Part([7, 6], 1, [2]), Part([3, 4], 0, [3])]
        results.append((first, way(inputs_of(way.input_names, rows, cache))[0].numpy()))
    for one, other in zip(*results, strict=True):
        assert np.abs(one).max() > 0.5
        np.testing.assert_array_equal(one, other)


def test_what_depends_on_parameters_alone_is_computed_once(program):
    result, _ = rewritten(program, npu)
    tensors = {
        value: paddle.zeros([32, 4] if program.types[value].shape[-1] == 4 else [2]) for value in program.parameters
    }
    ready = running.Running(result, tensors, "cpu", npu.functions)
    assert ready.operations == [
        "npu.remove_padding", "embedding", "npu.decoder_layer", "npu.decoder_layer",
        "npu.decoder_layer", "npu.lm_head", "cast",
    ]  # fmt: skip


def test_an_operation_that_nothing_runs_is_named(program):
    change(program, "gather", 0, name="index_sample")
    with pytest.raises(fk.FusionkitError, match="got index_sample. Run it on the host"):
        running.Running(program, {}, "cpu", {})


def test_the_hosts_passes_can_be_left_out_by_their_names(half):
    names = ["pack_weights", "fuse_decoder_layer"]
    for without in (["pack_weights"], ["all"], names):
        loaded = passes.load(half, "cpu", without=without)
        assert loaded.log[0] == "pass pack_weights: left out" and loaded.input_names[0] == "input_ids"
        assert ("pass fuse_decoder_layer: left out" in loaded.log) == (without != names[:1])
    with pytest.raises(ValueError, match="without must be of pack_weights, fuse_decoder_layer or all, got 'whatever'"):
        passes.load(half, "cpu", without=["whatever"])


def test_the_bound_of_each_fusion_is_told(capsys):
    sizes = {**step_ops.SIZES, "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "rounds": 1, "cached": 70}
    step_ops.main([f"--{name}={value}" for name, value in sizes.items()])
    told = capsys.readouterr().out
    assert told.count("at most, ") == 6 and told.count("fk.paged_attention") == 2
    assert told.count("ms, op by op ") == 2


def test_a_slice_of_a_tensor_is_refused_by_name():
    with pytest.raises(FusionkitError, match="a slice must be of a shape, to one of its sizes, got one of a tensor"):
        elementary.slice(paddle.ones([3]), [0], [1], decrease_axis=[0])
    assert elementary.slice([4, 5], [1], [2], decrease_axis=[0]) == 5

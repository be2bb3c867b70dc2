"""Exported Llamas on the emulated npu, fused and op by op: test_loaded_programs.py runs it where there is one."""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle
import pytest
import torch
from safetensors.torch import load_file

import fusionkit as fk
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.generate.decode_step import DecodeStep, narrow_matrices
from examples.llama2_13b.generate.key_value_cache import KeyValueCache
from examples.llama2_13b.generate.static_program import StaticProgram
from examples.llama2_13b.generate.step_inputs import Part, collate
from examples.llama2_13b.model.llama import Llama
from fusionkit import passes
from fusionkit.frameworks import custom_device
from tests.emulator.llama_float64 import attention, norm

assert custom_device.missing("npu") is None

STEPS = (
    "remove_residual_in_fused_bias_residual_layernorm",
    "remove_residual_in_rms_norm",
    "remove_blha_get_max_len",
    "llama_fuse_attention_layer_begin",
    "llama_fuse_attention_layer_end",
    "llama_fuse_attention_layer",
    "llama_fuse_lm_head_with_slice",
    "llama_fuse_lm_head",
    "llama_fuse_get_padding_offset",
)
LAYERS = tuple(name for name in STEPS if name.startswith("llama_fuse_attention_layer"))
GROUPED = LlamaConfig(
    vocab_size=40,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=32,
    rms_norm_eps=1e-5,
    initializer_range=0.15,  # scores of several units, so that a lost residual shows
)
CONFIGS = {
    "grouped": GROUPED,
    "one layer": replace(GROUPED, num_hidden_layers=1),
    "three layers, a key head for each query head": replace(GROUPED, num_hidden_layers=3, num_key_value_heads=4),
    "one key head": replace(GROUPED, num_hidden_layers=3, num_key_value_heads=1),
    "tied": replace(GROUPED, tie_word_embeddings=True),
}


def exported(config, folder, dtype="float16", seed=3):
    """A folder as `export` writes it, without a tokenizer, and the Hugging Face folder with the same weights."""
    paddle.seed(seed)
    with on_host():
        model = Llama(config, dtype)
        random = np.random.default_rng(seed)
        for parameter in model.parameters():  # float16 holds them, and norms differ from 1
            value = parameter.numpy() + (random.normal(0, 0.2, parameter.shape) if parameter.ndim == 1 else 0)
            parameter.set_value(value.astype(np.float16).astype(np.float32))
        model.save_pretrained(folder / "whole")
        narrow_matrices(model)
        step = DecodeStep(model)
        passes.export(step, folder / "model", step.input_spec())
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), "torch_dtype": dtype}))
    return folder


class on_host:
    def __enter__(self):
        self.device = paddle.get_device()
        paddle.set_device("cpu")

    def __exit__(self, *error):
        paddle.set_device(self.device)


@pytest.fixture(scope="module", autouse=True)
def npu():
    paddle.set_device("npu:0")


@pytest.fixture(scope="module", params=CONFIGS)
def model(request, tmp_path_factory):
    return CONFIGS[request.param], exported(CONFIGS[request.param], tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def grouped(tmp_path_factory):
    return exported(GROUPED, tmp_path_factory.mktemp("grouped"))


class Serving:
    """Rows that enter one after the other, with fixed tokens in place of sampled ones."""

    def __init__(self, program, config, dtype="float16"):
        self.program, self.cache = program, KeyValueCache(config, dtype, 12, 4)
        self.rows, self.cached = [], []

    def enter(self, *tokens):
        self.rows.append(list(tokens))
        self.cached.append(0)

    def step(self, next_tokens=(), at_most=100):
        """Logits of every row's last token; then each row that is complete gets its next one."""
        counts = [min(at_most, len(row) - start) for row, start in zip(self.rows, self.cached, strict=True)]
        parts = [
            Part(row[start : start + count], start, [3 * number, 3 * number + 2, 3 * number + 1])
            for number, (row, start, count) in enumerate(zip(self.rows, self.cached, counts, strict=True))
        ]
        logits = self.program(collate(parts), self.cache)
        self.cached = [start + count for start, count in zip(self.cached, counts, strict=True)]
        for row, token in zip(self.rows, next_tokens, strict=False):
            row.append(token)
        return logits


def story(program, config, dtype="float16"):
    """Logits of a step of prefill, of mixed steps and of decoding, each with the tokens of its rows."""
    serving, told = Serving(program, config, dtype), []

    def step(*next_tokens):
        before = [list(row) for row in serving.rows]
        told.append((before, serving.step(next_tokens)))

    serving.enter(1, 5, 9, 30, 2)
    serving.enter(8)
    step(7, 3)  # prefill
    serving.enter(4, 4, 11, 39, 17, 6, 21)
    step(12, 13, 14)  # two rows decode while one enters; it reaches a second block
    step(20, 21, 22)
    step(1, 2, 3)
    return told


def expected(config, folder, tokens):
    """Scores of the token after these in float64, from the whole sequence."""
    fields = config.to_dict()
    w = {name: x.double() for file in Path(folder).glob("*.safetensors") for name, x in load_file(file).items()}
    positions = torch.arange(len(tokens))[None]
    seen = positions[0][:, None] >= positions[0][None, :]
    x = w["model.embed_tokens.weight"][torch.tensor([tokens])]
    for index in range(config.num_hidden_layers):
        start = f"model.layers.{index}."
        layer = {name.removeprefix(start): each for name, each in w.items() if name.startswith(start)}
        x = x + attention(fields, layer, norm(fields, x, layer["input_layernorm.weight"]), positions, seen)
        y = norm(fields, x, layer["post_attention_layernorm.weight"])
        gate, up = y @ layer["mlp.gate_proj.weight"].T, y @ layer["mlp.up_proj.weight"].T
        x = x + (gate * torch.sigmoid(gate) * up) @ layer["mlp.down_proj.weight"].T
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return (norm(fields, x, w["model.norm.weight"]) @ head.T)[0, -1].numpy()


def error(told, config, folder):
    return max(
        np.abs(logits - np.array([expected(config, folder / "whole", tokens) for tokens in rows])).max()
        for rows, logits in told
    )


def operations(program):
    return program.program.operations


def test_fused_scores_are_those_of_float64_in_prefill_mixed_and_decode_steps(model):
    config, folder = model
    fused, single = StaticProgram(folder, config), StaticProgram(folder, config, ["all"])
    ran = operations(fused)
    assert ran.count("npu.decoder_layer") == max(config.num_hidden_layers, 2) and "npu.lm_head" in ran
    assert not [name for name in ran if name.startswith("fk.")]
    assert operations(single).count("fk.paged_attention") == config.num_hidden_layers
    told, told_singly = story(fused, config), story(single, config)
    scale = max(np.abs(logits).max() for _, logits in told)
    assert scale > 1
    # Some ten roundings to float16 a layer, each of 2^-11 of the value, add up like random steps.
    bound = 2**-11 * scale * np.sqrt(10 * config.num_hidden_layers + 10)
    assert error(told_singly, config, folder) < bound
    assert error(told, config, folder) < bound
    for (_, one), (_, other) in zip(told, told_singly, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2 * bound)


def test_the_log_names_every_step_and_what_it_matched(model):
    config, folder = model
    log = StaticProgram(folder, config).passes_log
    assert [line.split()[1].rstrip(":") for line in log] == list(STEPS)
    counts = dict(zip(STEPS, (int(line.partition(": ")[2].split()[0]) for line in log), strict=True))
    layers = config.num_hidden_layers
    assert counts == {
        STEPS[0]: 1,
        STEPS[1]: 2 * layers - 1,
        STEPS[2]: layers,
        STEPS[3]: min(layers - 1, 1),
        STEPS[4]: 1,
        STEPS[5]: max(layers - 2, 0),
        STEPS[6]: 0,
        STEPS[7]: 1,
        STEPS[8]: 1,
    }


def test_without_fused_layers_the_head_is_fused_behind_rebuild_padding(grouped):
    program = StaticProgram(grouped, GROUPED, LAYERS)
    assert {"npu.rebuild_padding", "npu.lm_head", "fk.paged_attention"} <= set(operations(program))
    assert "pass llama_fuse_attention_layer: left out" in program.passes_log
    told = story(program, GROUPED)
    assert error(told, GROUPED, grouped) < 2**-11 * 8 * np.sqrt(30)


@pytest.mark.parametrize("left_out", [STEPS[6:], STEPS[8:], STEPS[2:3]])
def test_any_step_that_layers_do_not_need_may_be_left_out(grouped, left_out):
    if left_out == STEPS[2:3]:
        with pytest.raises(fk.FusionkitError, match=r"got 0 that do: after .* no reader besides .*, got shape64"):
            StaticProgram(grouped, GROUPED, left_out)
        return
    assert error(story(StaticProgram(grouped, GROUPED, left_out), GROUPED), GROUPED, grouped) < 0.05


def test_tokens_beyond_the_lengths_are_padding(grouped):
    program = passes.load(grouped / "model", "npu:0")

    def run(*padding):
        arrays = {
            "input_ids": [1, 5, 9, *padding],
            "position_ids": [0, 1, 2, *padding],
            "last_tokens": [2],
            "seq_lens_encoder": [3],
            "seq_lens_decoder": [0],
            "seq_lens_this_time": [3],
            "block_tables": [[0]],
        }
        wide = ("input_ids", "position_ids")
        tensors = {
            name: paddle.to_tensor(np.array(each, "int64" if name in wide else "int32"))
            for name, each in arrays.items()
        }
        shape = [1, 2, 4, 8]
        return program([tensors.get(name, paddle.zeros(shape, "float16")) for name in program.input_names])[0].numpy()

    np.testing.assert_array_equal(run(), run(0, 0, 0, 0))


@pytest.mark.parametrize("left_out", [(), LAYERS])
def test_a_step_with_a_part_of_a_prompt_runs_op_by_op(grouped, left_out):
    """The device's ops take prompts whole. The steps before and after go through them."""
    program = StaticProgram(grouped, GROUPED, left_out)
    serving = Serving(program, GROUPED)
    serving.enter(8, 3)
    serving.step([5])
    serving.enter(1, 5, 9, 30, 2)
    serving.step([7], at_most=3)
    assert not program.steps_op_by_op
    rows = [list(row) for row in serving.rows]
    parts = serving.step([11, 12])
    (reason,) = program.steps_op_by_op
    assert "several tokens" in reason and program.steps_op_by_op[reason] == 1
    decoded = [list(row) for row in serving.rows], serving.step()
    assert program.steps_op_by_op.total() == 1
    assert error([(rows, parts), decoded], GROUPED, grouped) < 0.05


@pytest.mark.parametrize("name, value", [("position_ids", [0, 1, 3]), ("last_tokens", [1])])
def test_positions_and_last_tokens_that_the_device_would_not_look_at_run_op_by_op(grouped, name, value):
    inputs = collate([Part([1, 5, 9], 0, [0])])
    inputs = replace(inputs, **{name: np.array(value, getattr(inputs, name).dtype)})
    program, single = StaticProgram(grouped, GROUPED), StaticProgram(grouped, GROUPED, ["all"])
    got, want = (each(inputs, KeyValueCache(GROUPED, "float16", 2, 4)) for each in (program, single))
    (reason,) = program.steps_op_by_op
    assert name in reason
    np.testing.assert_array_equal(got, want)


@pytest.fixture
def threads_change_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def test_two_models_take_turns_in_one_process(grouped, tmp_path, threads_change_often):
    """Step by step between each other, then from two threads: each gives what it gives alone."""
    other_config = replace(GROUPED, num_hidden_layers=3, num_key_value_heads=4)
    other = exported(other_config, tmp_path, seed=11)
    models = [(StaticProgram(grouped, GROUPED), GROUPED), (StaticProgram(other, other_config), other_config)]
    alone = [story(*each) for each in models]

    servings = [Serving(*each) for each in models]
    for serving in servings:
        serving.enter(1, 5, 9, 30, 2)
        serving.enter(8)
    for serving, told in zip(servings, alone, strict=True):
        np.testing.assert_array_equal(serving.step((7, 3)), told[0][1])

    together = [None, None]

    def tell(number):
        paddle.set_device("npu:0")
        together[number] = [story(*models[number]) for _ in range(5)]

    threads = [threading.Thread(target=tell, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for told, stories in zip(alone, together, strict=True):
        for again in stories:
            for (_, one), (_, two) in zip(told, again, strict=True):
                np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_the_vendors_op_cannot_runs_op_by_op_and_says_so(dtype, tmp_path):
    folder = exported(GROUPED, tmp_path, dtype)
    program = StaticProgram(folder, GROUPED)
    reason = "fused_blha_layer_op takes float16 only (11 times, first fk.fused_linear at /DecoderLayer"
    assert program.passes_log[0].startswith(f"no pass is run, every op runs by itself: {reason}")
    assert operations(program).count("fk.paged_attention") == 2
    bound = {"bfloat16": 2**-8 * 8 * np.sqrt(30), "float32": 2**-23 * 8 * 30}[dtype]
    assert error(story(program, GROUPED, dtype), GROUPED, folder) < bound

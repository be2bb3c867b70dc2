"""`--cache_dtype int8`: what export writes, what runs it, what it takes, and who refuses it."""

from __future__ import annotations

import json
import re

import numpy as np
import paddle
import pytest

import fusionkit as fk
from examples.llama2_13b import serve
from examples.llama2_13b.bench import perplexity
from examples.llama2_13b.export import ExportFlags, export
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.generate.key_value_cache import KeyValueCache, bytes_per_token
from examples.llama2_13b.generate.static_program import StaticProgram
from examples.llama2_13b.io import flags
from examples.llama2_13b.model import Llama
from examples.llama2_13b.predict import PredictFlags, predict
from examples.llama2_13b.serve import ServeFlags
from fusionkit.passes import reading
from fusionkit.passes.load import require_floats
from tests.llama.test_static_program import inputs


@pytest.fixture(scope="module")
def exported(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8") / "exported"
    words = f"--model_name_or_path {tiny_folder} --output_path {folder} --dtype bfloat16 --cache_dtype int8"
    export(flags.parse(ExportFlags, words.split(), "examples.llama2_13b.export"))
    return folder


@pytest.fixture(scope="module")
def program(exported):
    return StaticProgram(exported, LlamaConfig.from_json(exported / "config.json"))


def test_the_program_holds_the_op_over_int8_and_the_folder_says_so(exported, program):
    ops = set(re.findall(r'"#":"\d+\.(fusionkit_paged\w+)"', (exported / "model.json").read_text()))
    assert ops == {"fusionkit_paged_attention_int8_"}
    assert json.loads((exported / "config.json").read_text())["cache_dtype"] == "int8"
    assert (program.dtype, program.cache_dtype) == ("bfloat16", "int8")


def test_without_the_flag_nothing_changes(tiny_folder, tmp_path):
    export(ExportFlags(str(tiny_folder), str(tmp_path / "exported"), "bfloat16"))
    assert "cache_dtype" not in json.loads((tmp_path / "exported" / "config.json").read_text())
    assert "int8" not in (tmp_path / "exported" / "model.json").read_text()
    config = LlamaConfig.from_json(tmp_path / "exported" / "config.json")
    assert StaticProgram(tmp_path / "exported", config).cache_dtype == "bfloat16"


def test_a_step_writes_codes_and_scales_of_every_layer(exported, program):
    config = LlamaConfig.from_json(exported / "config.json")
    cache = KeyValueCache(config, program.cache_dtype, 4, 16)
    program(inputs(3, 7), cache)
    for codes, scales in zip(cache.keys + cache.values, cache.key_scales + cache.value_scales, strict=True):
        assert codes.dtype == paddle.int8 and scales.dtype == paddle.float32
        largest, scales = np.abs(codes.numpy()).max(axis=-1), scales.numpy()
        np.testing.assert_array_equal(largest[:2, :, :3], 127)  # of each token's largest number
        np.testing.assert_array_equal(scales != 0, largest != 0)
        np.testing.assert_array_equal((scales[0] != 0).sum(axis=-1), 3)


def test_scores_are_near_those_of_a_cache_of_floats(tiny_folder, exported, program, tmp_path):
    export(ExportFlags(str(tiny_folder), str(tmp_path / "floats"), "bfloat16"))
    config = LlamaConfig.from_json(exported / "config.json")
    floats = StaticProgram(tmp_path / "floats", config)
    got, want = (each(inputs(3, 14), KeyValueCache(config, each.cache_dtype, 4, 16)) for each in (program, floats))
    assert 0 < np.abs(got - want).max() < 0.05 * np.abs(want).max()


@pytest.mark.parametrize("dtype, head_dim, of_a_head", [("bfloat16", 64, 128), ("int8", 64, 68), ("float32", 8, 32)])
def test_a_token_takes_its_bytes(exported, dtype, head_dim, of_a_head):
    fields = json.loads((exported / "config.json").read_text())
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 4 * head_dim, "num_hidden_layers": 3}
    config = LlamaConfig.from_dict({**fields, **heads, "head_dim": head_dim}, "a test")
    cache = KeyValueCache(config, dtype, 5, 4)
    held = [each for part in (cache.keys, cache.values, cache.key_scales, cache.value_scales) for each in part]
    assert bytes_per_token(config, dtype) == 2 * 3 * 2 * of_a_head
    assert sum(each.size * each.element_size() for each in held) == 5 * 4 * bytes_per_token(config, dtype)


def test_predict_and_serve_run_it(exported, tiny_folder, capsys):
    words = ["--model_name_or_path", str(exported), "--max_length", "4", "a prompt"]
    assert predict(flags.parse(PredictFlags, words, "examples.llama2_13b.predict")) == 0
    assert "a prompt" in capsys.readouterr().out
    state = serve.load(ServeFlags(str(tiny_folder), cache_dtype="int8", max_rows=2))
    cache = state.engine._engine._cache
    assert cache.keys[0].dtype == paddle.int8 and len(cache.key_scales) == len(cache.keys)


def test_weights_and_cache_are_both_in_8_bits(tiny_folder, tmp_path):
    export(ExportFlags(str(tiny_folder), str(tmp_path / "exported"), weight_dtype="int8", cache_dtype="int8"))
    config = LlamaConfig.from_json(tmp_path / "exported" / "config.json")
    scores = StaticProgram(tmp_path / "exported", config)(inputs(3, 14), KeyValueCache(config, "int8", 4, 16))
    assert scores.shape == (2, config.vocab_size) and np.isfinite(scores).all()


def test_an_exported_folder_has_its_own(exported):
    with pytest.raises(ValueError, match="--cache_dtype must be left out with an exported folder"):
        serve.load(ServeFlags(str(exported), cache_dtype="int8"))


@pytest.mark.parametrize("command", ["export", "serve"])
def test_another_dtype_is_refused_by_name(command):
    make = {
        "export": lambda: ExportFlags("m", "o", cache_dtype="int4"),
        "serve": lambda: ServeFlags("m", cache_dtype="int4"),
    }
    with pytest.raises(ValueError, match=f"{command}: --cache_dtype must be int8, or left out .*, got 'int4'"):
        make[command]()


def test_a_folder_with_another_dtype_is_refused(exported, tmp_path):
    fields = json.loads((exported / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, "cache_dtype": "int2"}))
    with pytest.raises(ValueError, match="cache_dtype must be int8, got 'int2'. Export the model again"):
        StaticProgram(tmp_path, LlamaConfig.from_json(exported / "config.json"))


def test_a_device_refuses_the_program_by_name(exported):
    """As `passes.load` asks for every device but the host."""
    program, _ = reading.read(exported / "model", "cpu")
    with pytest.raises(
        fk.FusionkitError, match="caches on npu:0 must be floats, got int8 in 2 .* fk.paged_attention at"
    ):
        require_floats(program, "npu:0")


def test_perplexity_through_a_cache_is_the_models(tiny_folder):
    """Of floats the same but for rounding; of int8 near, and another one."""
    model = Llama.from_pretrained(tiny_folder, "float32")
    windows = perplexity.cut(list(range(3, 80)), 30)
    plain = perplexity.perplexity(lambda tokens: perplexity.logits(model, tokens), windows)
    floats, int8 = (
        perplexity.perplexity(lambda tokens, of=of: perplexity.logits_through_cache(model, tokens, of), windows)
        for of in (None, "int8")
    )
    assert abs(floats / plain - 1) < 1e-5
    assert 1e-7 < abs(int8 / plain - 1) < 0.02

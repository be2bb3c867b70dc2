"""The model against transformers' LlamaForCausalLM, and against itself where it must not differ."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
import torch
import transformers

import fusionkit as fk
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.folders.layout import layout
from examples.llama2_13b.model import Llama
from examples.llama2_13b.model.llama import GRANULARITIES
from examples.llama2_13b.parallel.tensor_parallel import ALONE, TensorParallel, is_shard
from tests.llama.conftest import EXAMPLE

SIZES = LlamaConfig(
    vocab_size=97,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=6,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
)
VARIANTS = {
    "one-key-head-per-query-head": {},
    "grouped-key-heads": {"num_key_value_heads": 2},
    "one-key-head": {"num_key_value_heads": 1},
    "own-head-dim": {"head_dim": 32, "num_key_value_heads": 3},
    "own-theta": {"rope_theta": 500.0},
    "tied": {"tie_word_embeddings": True},
}


# Calls of the ops in a layer's forward pass; the first of three has no sum before its norm.
CORE = {"fusion_rope": 3, "flash_attention": 3}
ATTENTION = CORE | {"fused_linear": 6}
LAYER = CORE | {"fused_linear": 12, "swiglu": 3, "fusion_rms_norm": 1, "fusion_add_rms_norm": 5}


def token_ids(shape, seed=0):
    """No padding token: transformers gives its embedding no gradient."""
    return np.random.default_rng(seed).integers(1, 97, shape)


def make_model(seed=0, dtype="float32", recompute=None, **changes):
    """Weights of a size that makes every part of the model matter: with 0.02 attention would be nearly uniform."""
    paddle.seed(seed)
    sizes = {"head_dim": 0, "initializer_range": 0.3, **changes}
    return Llama(dataclasses.replace(SIZES, **sizes), dtype, recompute)


def assert_close(ours, theirs):
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def transformers_logits(folder, ids):
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.from_numpy(ids)).logits.numpy()


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_transformers_reads_our_folder_and_gives_our_logits(tmp_path, changes):
    model = make_model(**changes)
    model.save_pretrained(tmp_path)
    ids = token_ids((2, 33))
    ours = model(paddle.to_tensor(ids)).numpy()
    assert {backend for _, backend, _ in fk.ledger()} == {"cpu"}
    assert_close(ours, transformers_logits(tmp_path, ids))


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_we_read_the_folder_of_transformers_and_give_its_logits(tmp_path, changes):
    fields = {**SIZES.to_dict(), "num_key_value_heads": 6, "head_dim": 8, "initializer_range": 0.3, **changes}
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields)).save_pretrained(tmp_path)
    ids = token_ids((2, 33))
    assert_close(Llama.from_pretrained(tmp_path)(paddle.to_tensor(ids)).numpy(), transformers_logits(tmp_path, ids))


def test_bfloat16_logits_are_as_near_to_float32_as_those_of_transformers(tmp_path):
    model = make_model(dtype="bfloat16", num_key_value_heads=2)
    model.save_pretrained(tmp_path)
    ids = token_ids((2, 33))
    exact = transformers_logits(tmp_path, ids)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    with torch.no_grad():
        their_error = np.sqrt(np.mean((theirs(torch.from_numpy(ids)).logits.float().numpy() - exact) ** 2))
    our_error = np.sqrt(np.mean((model(paddle.to_tensor(ids)).numpy() - exact) ** 2))
    assert our_error <= their_error


def test_packed_documents_do_not_see_each_other():
    model = make_model(num_key_value_heads=2)
    first, second = token_ids((1, 20)), token_ids((1, 13), seed=1)
    packed = np.concatenate([first, second], axis=1)
    positions = np.concatenate([np.arange(20), np.arange(13)])[None]
    ends = np.repeat(np.int32([20, 33]), [20, 13])[None, None, :, None]
    logits = model(*map(paddle.to_tensor, (packed, positions, ends))).numpy()
    alone = [model(paddle.to_tensor(ids)).numpy() for ids in (first, second)]
    np.testing.assert_allclose(logits, np.concatenate(alone, axis=1), rtol=0, atol=1e-5 * np.abs(logits).max())


def test_position_ids_shift_the_rotation():
    model = make_model()
    ids = paddle.to_tensor(token_ids((1, 9)))
    default = model(ids).numpy()
    np.testing.assert_array_equal(model(ids, paddle.arange(9).unsqueeze(0)).numpy(), default)
    assert np.abs(model(ids, 3 * paddle.arange(9).unsqueeze(0)).numpy() - default).max() > 0.01


def test_loss_is_the_cross_entropy_of_the_logits():
    model = make_model(num_key_value_heads=2)
    ids, labels = token_ids((2, 17)), token_ids((2, 17), seed=1)
    labels[0, :5] = -100
    logits = model(paddle.to_tensor(ids)).numpy().astype(np.float64)
    scores = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -np.take_along_axis(scores, np.maximum(labels, 0)[..., None], -1)[..., 0][labels != -100].sum()
    loss_sum, num_tokens = model.loss(paddle.to_tensor(ids), paddle.to_tensor(labels))
    assert int(num_tokens) == 2 * 17 - 5
    assert float(loss_sum) == pytest.approx(expected, rel=1e-5)


def gradients(model):
    ids = paddle.to_tensor(token_ids((2, 17)))
    model.clear_gradients()
    loss_sum, num_tokens = model.loss(ids, ids)
    (loss_sum / num_tokens.astype("float32")).backward()
    return {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("recompute", GRANULARITIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_recomputed_gradients_are_equal_bit_by_bit(native, dtype, recompute):
    native.set_num_threads(2)
    plain, again = (gradients(make_model(dtype=dtype, recompute=each)) for each in (None, recompute))
    assert len(plain) == 3 + 6 * 3
    for name, gradient in plain.items():
        assert gradient.dtype == np.float32 and np.abs(gradient).max() > 0, name
        np.testing.assert_array_equal(again[name], gradient, err_msg=name)


@pytest.mark.parametrize("recompute", GRANULARITIES)
def test_recomputed_layers_stay_on_the_backend_of_their_first_run(recompute):
    model = make_model(recompute=recompute)
    ids = paddle.to_tensor(token_ids((1, 8)))
    with fk.use_backend("eager"):
        loss_sum, _ = model.loss(ids, ids)
    loss_sum.backward()
    assert {backend for _, backend, _ in fk.ledger()} == {"eager"}


@pytest.mark.parametrize(
    "recompute, again",
    [(None, {}), ("core_attn", CORE), ("full_attn", ATTENTION), ("full", LAYER)],
)
def test_what_is_computed_again(recompute, again):
    gradients(make_model())
    once = dict(fk.ledger())
    fk.ledger().reset()
    gradients(make_model(recompute=recompute))
    assert {backend for _, backend, _ in fk.ledger()} == {"cpu"}
    assert {key[0]: count - once[key] for key, count in fk.ledger().items() if count > once[key]} == again


def test_gradients_agree_with_transformers(tmp_path):
    model = make_model(num_key_value_heads=2)
    model.save_pretrained(tmp_path)
    ours = gradients(model)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.from_numpy(token_ids((2, 17)))
    logits = theirs(ids).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
    layer = theirs.model.layers[1]
    qkv = [getattr(layer.self_attn, f"{part}_proj").weight.grad.numpy().T for part in "qkv"]
    pairs = {
        "embed_tokens.weight": theirs.model.embed_tokens.weight.grad.numpy(),
        "layers.1.self_attn.qkv_proj.weight": np.concatenate(qkv, axis=1),
        "layers.1.mlp.down_proj.weight": layer.mlp.down_proj.weight.grad.numpy().T,
        "layers.1.input_layernorm.weight": layer.input_layernorm.weight.grad.numpy(),
        "lm_head.weight": theirs.lm_head.weight.grad.numpy().T,
    }
    for name, expected in pairs.items():
        atol = 1e-4 * np.abs(expected).max()
        np.testing.assert_allclose(ours[name], expected, rtol=0, atol=atol, err_msg=name)


def test_the_gradient_of_a_tied_embedding_is_the_sum_of_both_uses(tmp_path):
    model = make_model(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    ours = gradients(model)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert theirs.lm_head.weight is theirs.model.embed_tokens.weight
    ids = torch.from_numpy(token_ids((2, 17)))
    torch.nn.functional.cross_entropy(theirs(ids).logits.flatten(0, 1), ids.flatten()).backward()
    assert "embed_tokens.weight" not in ours
    assert_close(ours["lm_head.weight"], theirs.model.embed_tokens.weight.grad.numpy().T)


@pytest.mark.parametrize("outside", [-1, 97])
def test_an_id_outside_of_a_tied_embedding_is_refused(outside):
    with pytest.raises(ValueError, match=rf"x must be in \[0, 97\), got {outside}"):
        make_model(tie_word_embeddings=True)(paddle.to_tensor([[3, outside]]))


def read_configuration(tmp_path, **fields):
    kept = {name: value for name, value in SIZES.to_dict().items() if name not in ("head_dim", "rope_theta")}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**kept, **fields}))
    return LlamaConfig.from_json(path)


@pytest.mark.parametrize(
    "field, value",
    [
        ("model_type", "gemma"),
        ("model_type", ["llama"]),
        ("hidden_act", "gelu"),
        ("attention_bias", "yes"),
        ("attention_bias", 1),
        ("mlp_bias", True),
        ("attention_dropout", 0.1),
        ("tie_word_embeddings", 1),
        ("rope_scaling", {"type": "longrope", "factor": 2.0}),
        ("rope_parameters", {"rope_type": "llama3", "factor": 8.0}),
        ("rope_parameters", "linear"),
        ("rope_theta", float("inf")),
        ("sliding_window", 128),
        ("layer_types", ["full_attention", "sliding_attention", "full_attention"]),
        ("no_rope_layers", [1, 1, 0]),
        ("partial_rotary_factor", 0.5),
        ("rotary_percent", 0.25),
        ("rotary_emb_base", 500000),
        ("rope_ratio", 50),
        ("attention_multiplier", 0.0078125),
        ("embedding_multiplier", 12),
        ("residual_multiplier", 0.22),
        ("logits_scaling", 8),
        ("final_logit_softcapping", 30.0),
        ("attn_logit_softcapping", 50.0),
        ("is_causal", False),
        ("alibi", True),
        ("rope_scaling_type", "ntk"),
        ("pruned_heads", {"0": [1]}),
        ("quantization_config", {"bits": 4}),
        ("num_key_value_heads", 4),
        ("head_dim", 7),
        ("hidden_size", 50),
        ("hidden_size", "48"),
        ("num_hidden_layers", 0),
        ("rms_norm_eps", None),
        ("eos_token_id", 97),
        ("eos_token_id", [1, 97]),
        ("eos_token_id", []),
    ],
)
def test_a_configuration_that_is_not_covered_is_refused_by_name(tmp_path, field, value):
    with pytest.raises(ValueError, match=f"config.json.*{field}"):
        read_configuration(tmp_path, **{field: value})


THETA_SPELLINGS = {
    "top": {"rope_theta": 5e5},
    "top-beside-a-kind": {"rope_theta": 500000, "rope_parameters": {"rope_type": "default"}},
    "top-beside-an-older-kind": {"rope_theta": 5e5, "rope_scaling": {"type": "default"}},
    "top-beside-nulls": {
        "rope_theta": 5e5,
        "rope_parameters": None,
        "rope_scaling": {"rope_type": None, "factor": 1.0},
    },
    "parameters": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    "parameters-beside-null": {
        "rope_theta": None,
        "rope_parameters": {"rope_theta": 5e5, "partial_rotary_factor": 1.0},
    },
    "scaling": {"rope_scaling": {"rope_type": "default", "rope_theta": 5e5}},
    "by-layer-type": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 5e5}}},
    "everywhere": {"rope_theta": 500000, "rope_parameters": {"rope_theta": 5e5}, "rope_scaling": {"rope_theta": 5e5}},
}


@pytest.mark.parametrize("fields", THETA_SPELLINGS.values(), ids=THETA_SPELLINGS)
def test_every_spelling_of_theta_means_what_transformers_takes_it_for(tmp_path, fields):
    assert read_configuration(tmp_path, **fields).rope_theta == 500000
    if "full_attention" not in str(fields):  # transformers' Llama has no layer types
        theirs = transformers.AutoConfig.from_pretrained(tmp_path)
        assert theirs.rope_parameters["rope_theta"] == 500000


@pytest.mark.parametrize("fields", [{}, {"rope_parameters": {}}, {"rope_scaling": {"rope_type": "default"}}])
def test_theta_that_no_field_says_is_that_of_transformers(tmp_path, fields):
    assert read_configuration(tmp_path, **fields).rope_theta == 10000
    assert transformers.AutoConfig.from_pretrained(tmp_path).rope_parameters["rope_theta"] == 10000


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}}, "rope_theta and rope_parameters.rope_theta"),
        ({"rope_theta": 1e4, "rope_scaling": {"rope_theta": 5e5}}, "rope_theta and rope_scaling.rope_theta"),
        (
            {"rope_parameters": {"rope_theta": 1e4}, "rope_scaling": {"rope_theta": 5e5}},
            "rope_parameters.rope_theta and rope_scaling.rope_theta must be equal, got 10000.0 and 500000.0",
        ),
        (
            {"rope_theta": 1e4, "rope_parameters": {"full_attention": {"rope_theta": 5e5}}},
            "rope_theta and rope_parameters.full_attention.rope_theta",
        ),
        ({"rope_parameters": {"sliding_attention": {}}}, "rope_parameters.sliding_attention must not be there"),
        ({"rope_parameters": {"full_attention": {"rope_type": "ntk"}}}, "full_attention.rope_type must be default, l"),
        (
            {"rope_scaling": {"rope_type": "default", "type": "dynamic"}},
            'rope_scaling.rope_type and rope_scaling.type must be equal, got "default" and "dynamic"',
        ),
        ({"rope_parameters": {"rope_type": "default", "factor": 2}}, "rope_parameters.factor must be 1 or left out"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters.partial_rotary_factor must be 1"),
        ({"rope_parameters": {"rope_theta": "500000"}}, "rope_theta must be a number"),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_theta must be positive"),
        ({"rope_theta": True}, "rope_theta must be a number"),
    ],
)
def test_thetas_that_differ_or_scaled_frequencies_are_refused(tmp_path, fields, words):
    with pytest.raises(ValueError, match=f"config.json: .*{words}"):
        read_configuration(tmp_path, **fields)


def test_theta_survives_a_save_for_both(tmp_path):
    model = make_model(rope_theta=5e5)
    model.save_pretrained(tmp_path)
    assert transformers.AutoConfig.from_pretrained(tmp_path).rope_parameters["rope_theta"] == 5e5
    transformers.AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert "rope_theta" not in json.loads((tmp_path / "config.json").read_text())  # it stands a level deeper
    assert Llama.from_pretrained(tmp_path).config.rope_theta == 5e5


def test_a_field_that_is_null_or_changes_nothing_is_accepted(tmp_path):
    fields = {
        "attention_bias": None, "hidden_act": "swish", "layer_types": ["full_attention"] * 3, "pretraining_tp": 2,
        "logits_scaling": 1.0, "pruned_heads": {}, "use_cache": False, "chunk_size_feed_forward": 0, "mine": [1],
    }  # fmt: skip
    assert read_configuration(tmp_path, **fields) == dataclasses.replace(SIZES, num_key_value_heads=6)


def test_the_configuration_of_llama_2_13b():
    config = LlamaConfig.from_json(EXAMPLE / "configs" / "llama2_13b.json")
    expected = LlamaConfig(
        vocab_size=32000, hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40,
        num_key_value_heads=40, head_dim=128, max_position_embeddings=4096, rms_norm_eps=1e-5, rope_theta=10000.0,
        initializer_range=0.02, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    assert config == expected


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ValueError, match="Llama: dtype must be float32 or bfloat16 or float16, got 'int8'"):
        Llama(SIZES, "int8")


def test_ids_of_the_wrong_shape_are_refused():
    model = make_model()
    with pytest.raises(ValueError, match=r"input_ids must be \[batch_size, seq_len\], got \[4\]"):
        model(paddle.arange(4))
    with pytest.raises(ValueError, match="fusion_rope: cos must be of at least 65 rows"):
        model(paddle.ones([1, 65], "int64"))


@pytest.mark.parametrize("tied", [False, True], ids=["two", "tied"])
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_table_of_parameters_is_that_of_the_model(ranks, biased, tied):
    """Every parameter has its row, in order, of its size: on one rank, and divided over two, one entry more on the
    first."""
    config = LlamaConfig.from_json(EXAMPLE / "configs" / "tiny.json")
    config = dataclasses.replace(config, vocab_size=511, tie_word_embeddings=tied, attention_bias=biased)
    all_ranks = [TensorParallel(SimpleNamespace(rank=rank, world_size=ranks)) for rank in range(ranks)]
    with paddle.LazyGuard():
        models = [Llama(config, shards=shards if ranks > 1 else ALONE) for shards in all_ranks]
    table = layout(config)
    for model in models:
        assert [name for name, _ in model.named_parameters()] == list(table)
    for (name, parameter), *others in zip(*(model.named_parameters() for model in models), strict=True):
        is_divided = "norm" not in name and not name.endswith("o_proj.bias")
        assert is_shard(parameter) == (is_divided and ranks > 1)
        shards = [parameter, *(other for _, other in others)] if is_divided else [parameter]
        assert sum(int(np.prod(shard.shape)) for shard in shards) == table[name].size, name
        assert {part.axis is not None for part in table[name].parts} == {is_divided}
        assert table[name].is_decayed == (len(parameter.shape) > 1)
    looked_up = [name for name, row in table.items() if row.is_looked_up]
    assert looked_up == ([] if tied else ["embed_tokens.weight"])  # a tied one is multiplied by, too

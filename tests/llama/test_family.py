"""Members of the family beside transformers' own classes: logits, training and greedy answers."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import paddle
import pytest
import torch
import transformers

import fusionkit as fk
from examples.llama2_13b.create import CreateFlags, create
from examples.llama2_13b.data.tokenizer import Tokenizer
from examples.llama2_13b.export import ExportFlags, export, narrow_matrices
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.folders.layout import elements
from examples.llama2_13b.folders.rope_scaling import Dynamic, Linear, Llama3, Yarn
from examples.llama2_13b.generate.decode_step import DecodeStep
from examples.llama2_13b.generate.generation_settings import GenerationSettings
from examples.llama2_13b.generate.static_program import StaticProgram
from examples.llama2_13b.model import Llama
from examples.llama2_13b.predict import PredictFlags, predict
from examples.llama2_13b.sft import sft
from examples.llama2_13b.train.metrics import attention_flops
from fusionkit import passes
from tests.llama.conftest import DATA, EXAMPLE
from tests.llama.test_generation import MAX_LENGTH, Answering

SIZES = LlamaConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    initializer_range=0.3,  # with 0.02 attention would be nearly uniform
)
SCALED = {
    "linear": {"rope_scaling": Linear(4.0)},
    "dynamic": {"rope_scaling": Dynamic(4.0)},
    "llama3": {"rope_scaling": Llama3(8.0, 1.0, 4.0, 16), "rope_theta": 500.0},
    "yarn": {"rope_scaling": Yarn(4.0, 16), "rope_theta": 300.0},
}
MEMBERS = {
    "mistral": {"model_type": "mistral"},
    "mistral-own-head-dim": {"model_type": "mistral", "head_dim": 16},
    "mistral-window": {"model_type": "mistral", "sliding_window": 5},
    "qwen2": {"model_type": "qwen2"},
    "qwen2-tied": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2-window": {"model_type": "qwen2", "sliding_window": 5, "sliding_layers": (False, True)},
    "llama-biases": {"attention_bias": True},
    "llama-own-head-dim": {"head_dim": 12},
    "llama-tied": {"tie_word_embeddings": True},
    **{f"llama-{kind}": changes for kind, changes in SCALED.items()},
}
DECODED = [name for name in MEMBERS if name not in ("mistral", "llama-own-head-dim", "llama-linear", "llama-llama3")]
members = pytest.mark.parametrize("changes", MEMBERS.values(), ids=MEMBERS)


def config_of(changes):
    return dataclasses.replace(SIZES, **{"head_dim": 0, **changes})


def make_model(changes, dtype="float32"):
    paddle.seed(0)
    model = Llama(config_of(changes), dtype)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.set_value(paddle.randn(parameter.shape))  # they begin at zero
    return model


def token_ids(*shape, seed=0):
    """No padding token: transformers gives its embedding no gradient."""
    return np.random.default_rng(seed).integers(1, SIZES.vocab_size, shape)


def theirs_of(folder):
    """Each by its own class; attention by its definition."""
    how = {"dtype": torch.float32, "attn_implementation": "eager"}
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **how)


def assert_close(ours, theirs, bound=2e-5, message=""):
    """float32's rounding over two layers, relative to the largest value."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound * np.abs(theirs).max(), err_msg=message)


@members
def test_we_read_the_folder_of_transformers_and_give_its_logits(tmp_path, changes):
    config = config_of(changes)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(tmp_path))
    for name, parameter in theirs.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    theirs.save_pretrained(tmp_path)
    ids = token_ids(2, 23)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids)).logits.numpy()
    model = Llama.from_pretrained(tmp_path)
    assert model.config == config
    assert_close(model(paddle.to_tensor(ids)).numpy(), expected)
    assert {backend for _, backend, _ in fk.ledger()} == {"cpu"}


@members
def test_three_steps_of_training_are_those_of_transformers(tmp_path, changes):
    """Plain gradient descent: losses, and the gradients of all tensors. Those of the scores cancel: 2.4e-5 was seen."""
    model = make_model(changes)
    model.save_pretrained(tmp_path)
    theirs = theirs_of(tmp_path)
    theirs.train()
    for step in range(3):
        ids = token_ids(2, 19, seed=step)
        labels = np.roll(ids, -1, 1)
        loss_sum, count = model.loss(paddle.to_tensor(ids), paddle.to_tensor(labels))
        loss = loss_sum / count.astype("float32")
        loss.backward()
        logits = theirs(torch.from_numpy(ids)).logits
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(labels).flatten())
        expected.backward()
        assert float(loss) == pytest.approx(float(expected), rel=1e-5)
        found = {name: each.grad.numpy() for name, each in theirs.named_parameters()}
        for name, parameter in model.named_parameters():
            row = model.table[name]
            for part, ours in zip(row.parts, row.split(parameter.grad.numpy()), strict=True):
                assert_close(ours, found.pop(part.name), 1e-4, f"{part.name} in step {step}")
        assert not found
        with paddle.no_grad(), torch.no_grad():
            for parameter in model.parameters():
                parameter.set_value(parameter - 0.1 * parameter.grad)
            for parameter in theirs.parameters():
                parameter -= 0.1 * parameter.grad
        model.clear_gradients()
        theirs.zero_grad()


@pytest.mark.parametrize("name", DECODED)
def test_greedy_answers_of_the_exported_program_are_those_of_transformers(tmp_path, name):
    """Rows of different lengths enter at different steps; the cache is wider than a window."""
    model = make_model(MEMBERS[name])
    model.save_pretrained(tmp_path)
    step = DecodeStep(model)
    passes.export(step, tmp_path / "model", step.input_spec())
    prompts = [token_ids(length, seed=length).tolist() for length in (1, 4, 17)]
    programs = {"float32": StaticProgram(tmp_path, model.config)}
    answers = dict(Answering((model.config, programs), eos=(), num_blocks=16, block_size=4).run(prompts))
    assert stored_elements(tmp_path, model) == pytest.approx(sum(elements(model.table).values()), rel=0.02)
    theirs = theirs_of(tmp_path)
    theirs.generation_config.eos_token_id = None
    for number, prompt in enumerate(prompts):
        whole = theirs.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=MAX_LENGTH, pad_token_id=0)
        assert answers[number] == whole[0, len(prompt) :].tolist()


def stored_elements(folder, model):
    """Of the exported parameters; their headers are some 40 bytes each."""
    tables = 2 * model.config.max_position_embeddings * model.config.head_dim // 2
    headers = 40 * (len(model.table) + 2)
    return ((folder / "model.pdiparams").stat().st_size - headers) / 4 - tables


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_tied_embedding_is_one_exported_parameter_in_16_bits(tmp_path, dtype):
    model, exact = (make_model(MEMBERS["qwen2-tied"], each) for each in (dtype, "float32"))
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict() | {"torch_dtype": dtype}))
    narrow_matrices(model)
    step = DecodeStep(model)
    passes.export(step, tmp_path / "model", step.input_spec())
    answering = Answering((model.config, {dtype: StaticProgram(tmp_path, model.config)}), dtype, eos=())
    prompt = token_ids(7).tolist()
    list(answering.run([prompt]))
    expected = exact(paddle.to_tensor([prompt])).numpy()[0, -1]
    rounding = {"bfloat16": 2.0**-8, "float16": 2.0**-11}[dtype]
    np.testing.assert_allclose(
        answering.step.logits[0][0], expected, rtol=0, atol=8 * rounding * np.abs(expected).max()
    )


@pytest.mark.parametrize("changes", [MEMBERS["mistral-window"], MEMBERS["qwen2-window"]], ids=["mistral", "qwen2"])
def test_packed_documents_have_windows_of_their_own(changes):
    model = make_model(changes)
    first, second = token_ids(1, 20), token_ids(1, 13, seed=1)
    packed = np.concatenate([first, second], axis=1)
    positions = np.concatenate([np.arange(20), np.arange(13)])[None]
    ends = np.repeat(np.int32([20, 33]), [20, 13])[None, None, :, None]
    logits = model(*map(paddle.to_tensor, (packed, positions, ends))).numpy()
    alone = [model(paddle.to_tensor(ids)).numpy() for ids in (first, second)]
    np.testing.assert_allclose(logits, np.concatenate(alone, axis=1), rtol=0, atol=1e-5 * np.abs(logits).max())


def test_every_command_takes_a_qwen2(sft_flags, tmp_path, capsys, no_measuring, no_drawing):
    """Biases, a window in one layer of two, one embedding, several ends."""
    tiny = json.loads((EXAMPLE / "configs" / "tiny.json").read_text())
    window = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
    fields = {"model_type": "qwen2", "attention_bias": None, "tie_word_embeddings": True, "eos_token_id": [3, 2]}
    (tmp_path / "config.json").write_text(json.dumps({**tiny, **window, **fields}))
    new, output, exported = (str(tmp_path / name) for name in ("new", "run", "exported"))
    with pytest.raises(ValueError, match="pad, bos and eos_token_id must be 0, 1 and 2"):
        create(CreateFlags(str(tmp_path / "config.json"), str(DATA), new))
    (tmp_path / "config.json").write_text(json.dumps({**tiny, **window, **fields, "eos_token_id": [2, 3]}))
    create(CreateFlags(str(tmp_path / "config.json"), str(DATA), new))
    assert sft(sft_flags(model_name_or_path=new, max_steps=2, output_dir=output)) == 0
    export(ExportFlags(output, exported))
    config = LlamaConfig.from_json(tmp_path / "exported" / "config.json")
    assert [config.window_of(layer) for layer in range(2)] == [None, 16] and config.eos_token_ids == (2, 3)
    capsys.readouterr()
    question = "a question of more tokens than the window has, so that some of them are out of its sight"
    greedy = {"decode_strategy": "greedy_search", "max_length": 8}
    assert predict(PredictFlags(exported, prompts=(question,), **greedy)) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])["output"]
    tokenizer, theirs = Tokenizer.from_pretrained(exported), theirs_of(output)
    ids = torch.tensor([[*tokenizer.begin, *tokenizer.encode(question)]])
    whole = theirs.generate(ids, do_sample=False, max_new_tokens=8, eos_token_id=[2, 3], pad_token_id=0)
    assert ids.shape[1] > 16 and tokenizer.decode(whole[0, ids.shape[1] :].tolist()) == answer


def test_flops_of_attention_count_the_pairs_in_the_window():
    config = config_of({**MEMBERS["qwen2-window"], "sliding_window": 50, "max_position_embeddings": 1000})
    lengths = [700, 30]
    pairs = sum(min(window, row + 1) for window in (1000, 50) for length in lengths for row in range(length))
    a_pair = 3 * 4 * config.num_attention_heads * config.head_dim  # two products, and twice as much backward
    assert attention_flops(config, lengths) == pytest.approx(a_pair * pairs, rel=2e-3)  # without half the diagonal


def read(tmp_path, member="llama", **fields):
    """The configuration of a folder, whose fields stand for those that `fields` change."""
    kept = config_of({"model_type": member}).to_dict()
    own = ("rope_theta", "rope_scaling", "layer_types", "use_sliding_window", "sliding_window", "max_window_layers")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({name: value for name, value in kept.items() if name not in own} | fields))
    return LlamaConfig.from_json(path)


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SPELLINGS = {
    "type": ({"rope_scaling": {"type": "linear", "factor": 2}}, Linear(2)),
    "rope_type": ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, Dynamic(2.0)),
    "both": ({"rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 2.0}}, Linear(2.0)),
    "parameters": ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}}, Linear(2.0)),
    "theta-beside": (
        {"rope_theta": 5e5, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
        Yarn(4.0, 32),
    ),
    "two-dictionaries": (
        {"rope_theta": 5e5, "rope_parameters": {"rope_theta": 5e5}, "rope_scaling": {"type": "linear", "factor": 2.0}},
        Linear(2.0),
    ),
    "the-same-twice": (
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0}, "rope_scaling": {"type": "linear", "factor": 2.0}},
        Linear(2.0),
    ),
    "original-inside": (
        {"rope_scaling": {"rope_type": "llama3", "original_max_position_embeddings": 16, **LLAMA3}},
        Llama3(**LLAMA3, original_max_position_embeddings=16),
    ),
    "original-at-the-top": (
        {"rope_scaling": {"rope_type": "llama3", **LLAMA3}, "original_max_position_embeddings": 16},
        Llama3(**LLAMA3, original_max_position_embeddings=16),
    ),
    "no-original": ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, Yarn(2.0, 64)),
    "no-factor": (
        {"rope_scaling": {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 16}},
        Yarn(4.0, 16),
    ),
    "default": ({"rope_scaling": {"rope_type": "default"}}, None),
}


@pytest.mark.parametrize("fields, scaling", SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_of_scaling_means_what_transformers_takes_it_for(tmp_path, fields, scaling):
    ours = read(tmp_path, **fields)
    assert ours.rope_scaling == scaling
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert theirs.rope_parameters["rope_type"] == (scaling.kind if scaling else "default")
    frequencies, amplitude = their_frequencies(theirs)
    np.testing.assert_allclose(ours.rotary_frequencies(), frequencies, rtol=1e-5)
    assert (scaling.amplitude if scaling else 1.0) == pytest.approx(amplitude)


def their_frequencies(config):
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    return rotary.inv_freq.numpy(), rotary.attention_scaling


PUBLISHED = {
    "llama-3.1": (128, 5e5, 131072, Llama3(8.0, 1.0, 4.0, 8192)),
    "llama-3.2-1b": (64, 5e5, 131072, Llama3(32.0, 1.0, 4.0, 8192)),
    "qwen2.5-yarn": (128, 1e6, 131072, Yarn(4.0, 32768)),
    "yarn-llama-2": (128, 1e4, 65536, Yarn(16.0, 4096)),
    "yarn-amplitude": (64, 1e4, 65536, Yarn(16.0, 4096, attention_factor=1.5)),
    "yarn-mscale": (64, 1e4, 163840, Yarn(40.0, 4096, mscale=1.0, mscale_all_dim=0.7)),
    "yarn-whole": (64, 1e4, 65536, Yarn(16.0, 4096, beta_fast=20.0, beta_slow=2.0, truncate=False)),
    "yarn-one-pair": (8, 10.0, 64, Yarn(2.0, 8)),
    "linear": (128, 1e4, 16384, Linear(8.0)),
}


@pytest.mark.parametrize("head_dim, theta, positions, scaling", PUBLISHED.values(), ids=PUBLISHED)
def test_frequencies_of_published_models_are_those_of_transformers(head_dim, theta, positions, scaling):
    sizes = {"hidden_size": 4 * head_dim, "rope_theta": theta, "max_position_embeddings": positions}
    ours = config_of({**sizes, "rope_scaling": scaling})
    frequencies, amplitude = their_frequencies(transformers.LlamaConfig(**ours.to_dict()))
    np.testing.assert_allclose(ours.rotary_frequencies(), frequencies, rtol=1e-5)
    assert scaling.amplitude == pytest.approx(amplitude)


@pytest.mark.parametrize(
    "member, fields, words",
    [
        ("llama", {"rope_scaling": {"type": "linear"}}, "rope_scaling.factor must be there for linear"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 0.5}}, "rope_scaling.factor must be at least 1"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": "2"}}, "rope_scaling.factor must be a number above 0"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2, "beta_fast": 32}}, "rope_scaling.beta_fast must be"),
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "rope_scaling.low_freq_factor must be there"),
        (
            "llama",
            {"rope_scaling": {"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1.0}},
            "rope_scaling.high_freq_factor must be above low_freq_factor 1.0",
        ),
        (
            "llama",
            {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0]}},
            "rope_scaling.rope_type must be default, linear, dynamic, llama3, yarn",
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_parameters and rope_scaling must ask for the same scaling",
        ),
        (
            "llama",
            {"rope_parameters": {"rope_theta": 5e5}, "rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_scaling.rope_theta must be 500000.0, as rope_parameters.rope_theta, got none",
        ),
        ("llama", {"sliding_window": 8}, "sliding_window must be null"),
        ("llama", {"layer_types": ["sliding_attention"] * 2}, "layer_types must be"),
        ("mistral", {"attention_bias": True}, "attention_bias must be false"),
        ("mistral", {"sliding_window": 0}, "sliding_window must be an integer of at least 1"),
        ("mistral", {"sliding_window": 8, "layer_types": ["full_attention"] * 2}, "layer_types must be what sliding"),
        ("qwen2", {"attention_bias": False}, "attention_bias must be true"),
        ("qwen2", {"use_qk_norm": True}, "use_qk_norm must be false"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 2}, "layer_types must be what sliding_window null means"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types must be a list of 2 names"),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": -1}, "max_window_layers must be an integer"),
        ("qwen3", {}, 'model_type must be "llama" or "mistral" or "qwen2", got "qwen3"'),
    ],
)
def test_what_is_not_covered_is_refused_by_name(tmp_path, member, fields, words):
    with pytest.raises(ValueError, match=f"config.json: {words}"):
        read(tmp_path, "llama" if member == "qwen3" else member, **fields, model_type=member)


@pytest.mark.parametrize(
    "member, fields, windows",
    [
        ("llama", {}, [None, None]),
        ("mistral", {}, [4096, 4096]),
        ("mistral", {"sliding_window": None}, [None, None]),
        ("mistral", {"sliding_window": 8, "layer_types": ["sliding_attention"] * 2}, [8, 8]),
        ("qwen2", {}, [None, None]),
        ("qwen2", {"sliding_window": 8}, [None, None]),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True}, [None, None]),  # from layer 28 on
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1}, [None, 8]),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 0}, [8, 8]),
        (
            "qwen2",
            {"sliding_window": 8, "use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"]},
            [8, None],
        ),
    ],
)
def test_every_spelling_of_a_window_means_what_transformers_takes_it_for(tmp_path, member, fields, windows):
    ours = read(tmp_path, member, **fields)
    assert [ours.window_of(layer) for layer in range(2)] == windows
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    if member == "qwen2":
        by_layer = [theirs.sliding_window if each == "sliding_attention" else None for each in theirs.layer_types]
    else:
        by_layer = [getattr(theirs, "sliding_window", None)] * 2
    assert by_layer == windows
    assert LlamaConfig.from_dict(ours.to_dict(), "again") == ours


def test_several_end_tokens_survive_and_end_answers(tmp_path):
    config = read(tmp_path, eos_token_id=[7, 2, 9])
    assert config.eos_token_id == 7 and config.eos_token_ids == (7, 2, 9)
    assert config.to_dict()["eos_token_id"] == [7, 2, 9]
    assert GenerationSettings.from_pretrained(tmp_path, config).eos_token_ids == (7, 2, 9)
    assert LlamaConfig.from_dict(config.to_dict(), "again") == config

"""GGUF files beside transformers, which has a reader of its own, and beside the formats written out in loops."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import gguf
import numpy as np
import paddle
import pytest
import tokenizers
import torch
from gguf import GGMLQuantizationType as Type
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from examples.llama2_13b.create import CreateFlags, create
from examples.llama2_13b.data.conversation import encode_messages, template_of
from examples.llama2_13b.data.tokenizer import Tokenizer
from examples.llama2_13b.export import ExportFlags, export
from examples.llama2_13b.folders.gguf_file import GGUFFile, gguf_of
from examples.llama2_13b.folders.model_folder import config_of
from examples.llama2_13b.lora import LoraFlags, lora
from examples.llama2_13b.merge import MergeFlags, merge
from examples.llama2_13b.model import Llama
from examples.llama2_13b.predict import PredictFlags, predict
from examples.llama2_13b.sft import SftFlags, sft
from tests.llama.chat_templates import CHATML, CONVERSATIONS, TEXTS
from tests.llama.conftest import DATA, EXAMPLE
from tests.llama.gguf_files import tensors_of, write

CHAT = CHATML.replace("<|im_start|>", "<s>").replace("<|im_end|>", "</s>")
MIXED = (Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.F16, Type.BF16, Type.F32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose rows are whole blocks of 32."""
    root = tmp_path_factory.mktemp("blocks")
    config = json.loads((EXAMPLE / "configs" / "tiny.json").read_text())
    config |= {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "rope_theta": 5000.0}
    (root / "config.json").write_text(json.dumps(config))
    create(CreateFlags(str(root / "config.json"), str(DATA), str(root / "model")))
    return root / "model"


@pytest.fixture(scope="module")
def mixed(folder, tmp_path_factory):
    """Of every type that the library writes, each in turn."""
    path = tmp_path_factory.mktemp("mixed") / "model.gguf"
    types = iter(MIXED * 20)
    return write(path, folder, lambda name: next(types), changes={"tokenizer.chat_template": CHAT})


def test_floats_are_those_of_the_folder(folder, tmp_path):
    path = write(tmp_path / "model.gguf", folder)
    ours, theirs = GGUFFile(path), tensors_of(folder)
    for name, value in theirs.items():
        whole = tuple(slice(0, size) for size in value.shape)
        assert ours.shape(name) == value.shape and np.array_equal(ours.read(name, whole), value), name
    assert config_of(path) == config_of(folder)


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"])
def test_a_part_is_that_of_the_whole(mixed, name):
    """What a rank has: whole heads, or some columns."""
    file = GGUFFile(mixed)
    whole = file.read(name, tuple(slice(0, size) for size in file.shape(name)))
    for rows, columns in ((slice(16, 48), slice(0, whole.shape[1])), (slice(0, 64), slice(5, 40))):
        assert np.array_equal(file.read(name, (rows, columns)), whole[rows, columns])


def test_logits_are_those_of_transformers_with_every_type(mixed):
    assert {tensor.tensor_type for tensor in gguf.GGUFReader(mixed).tensors} == set(MIXED)
    theirs = AutoModelForCausalLM.from_pretrained(mixed.parent, gguf_file=mixed.name, dtype=torch.float32).eval()
    ids = np.random.default_rng(0).integers(0, 512, (2, 33))
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    for source in (mixed, mixed.parent):  # the file, or the folder with it
        np.testing.assert_allclose(Llama.from_pretrained(source)(paddle.to_tensor(ids)).numpy(), expected, atol=2e-6)


def test_tokens_and_template_are_those_of_transformers(mixed):
    ours, theirs = Tokenizer.from_pretrained(mixed), AutoTokenizer.from_pretrained(mixed.parent, gguf_file=mixed.name)
    for text in (*TEXTS, "</s> in text", "don't 1234 it's\r\n\n x"):
        assert ours.encode(text, special=True) == theirs(text, add_special_tokens=False)["input_ids"], text
        assert ours.decode(ours.encode(text)) == text
    template = template_of(mixed)
    for messages in CONVERSATIONS:
        assert template.render(messages, True) == theirs.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
    assert encode_messages(CONVERSATIONS[0], ours, template) == theirs.apply_chat_template(
        CONVERSATIONS[0], add_generation_prompt=True, return_dict=False
    )


@pytest.mark.parametrize("cut", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_texts_are_cut_as_the_file_says(folder, tmp_path, cut):
    path = write(tmp_path / "model.gguf", folder, changes={"tokenizer.ggml.pre": cut})
    backend = tokenizers.Tokenizer.from_str(Tokenizer.from_pretrained(path).files["tokenizer.json"].decode())
    words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str("don't it'S 12345\n\n x")]
    digits = {"gpt-2": ["Ġ12345"], "smollm": ["Ġ", *"12345"], "llama-bpe": ["Ġ", "123", "45"], "qwen2": ["Ġ", *"12345"]}
    marks = {"gpt-2": ["Ġit", "'", "S"], "smollm": ["Ġit", "'", "S"]}.get(cut, ["Ġit", "'S"])
    ends = {"gpt-2": ["ĊĊ", "Ġx"], "smollm": ["ĊĊ", "Ġx"]}.get(cut, ["ĊĊ", "Ġx"])
    assert words == ["don", "'t", *marks, *digits[cut], *ends]
    if cut in ("llama-bpe", "qwen2"):
        theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
        for text in TEXTS:
            assert Tokenizer.from_pretrained(path).encode(text) == theirs(text, add_special_tokens=False)["input_ids"]


def half(value):
    return struct.pack("<e", value)


def raw_tensor(path, name, blocks, kind, columns):
    writer = gguf.GGUFWriter(path, "llama")
    data = np.frombuffer(b"".join(blocks), np.uint8)
    writer.add_tensor(name, data.reshape(-1, columns // 256 * (len(data) // len(blocks))), raw_dtype=kind)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()


def q4_k(block):
    """8 parts of 32 values of 4 bits: d * scale * q - dmin * minimum, with 6 bits for each scale and minimum."""
    d, dmin = struct.unpack("<ee", block[:4])
    packed, values = block[4:16], block[16:]
    out = []
    for part in range(8):
        if part < 4:
            scale, low = packed[part] & 63, packed[part + 4] & 63
        else:
            scale = packed[part + 4] & 15 | packed[part - 4] >> 6 << 4
            low = packed[part + 4] >> 4 | packed[part] >> 6 << 4
        for byte in values[part // 2 * 32 : part // 2 * 32 + 32]:
            out.append(d * scale * (byte >> 4 if part % 2 else byte & 15) - dmin * low)
    return out


def q6_k(block):
    """16 parts of 16 values of 6 bits less 32: d * scale * q. 4 bits of each are in the first 128 bytes."""
    low, high, scales = block[:128], block[128:192], struct.unpack("<16b", block[192:208])
    (d,) = struct.unpack("<e", block[208:])
    out = []
    for place in range(256):
        side, within = divmod(place, 128)
        quarter, column = divmod(within, 32)
        byte = low[64 * side + 32 * (quarter % 2) + column]
        bits = high[32 * side + column] >> 2 * quarter & 3
        out.append(d * scales[place // 16] * ((byte >> 4 if quarter > 1 else byte & 15) + 16 * bits - 32))
    return out


@pytest.mark.parametrize("kind, expected", [(Type.Q4_K, q4_k), (Type.Q6_K, q6_k)])
def test_blocks_of_256_are_read_as_the_format_says(tmp_path, kind, expected):
    random = np.random.default_rng(1)
    middle = (140, 208)[kind == Type.Q6_K]
    scales = half(0.013) + half(-0.2), half(0.013)
    blocks = [random.bytes(middle) for _ in range(12)]
    blocks = [scales[0] + one if kind == Type.Q4_K else one + scales[1] for one in blocks]
    name = "blk.0.ffn_up.weight"
    raw_tensor(tmp_path / "model.gguf", name, blocks, kind, 512)
    file = GGUFFile(tmp_path / "model.gguf")
    ours = file.read("model.layers.0.mlp.up_proj.weight", (slice(0, 6), slice(0, 512)))
    np.testing.assert_allclose(ours.ravel(), [value for one in blocks for value in expected(one)], rtol=1e-6, atol=1e-7)


def test_a_tied_head_is_not_in_the_file(folder, tmp_path, monkeypatch):
    tensors = {name: value for name, value in tensors_of(folder).items() if name != "lm_head.weight"}
    monkeypatch.setattr("tests.llama.gguf_files.tensors_of", lambda folder: tensors)
    path = write(tmp_path / "model.gguf", folder)
    assert config_of(path).tie_word_embeddings
    model = Llama.from_pretrained(path)
    assert "lm_head.weight" in model.table and "embed_tokens.weight" not in model.table


def test_every_command_takes_a_file(mixed, few_samples, tmp_path, no_measuring, no_drawing, capsys):
    """Exported; an adapter trained on it and merged; all of it trained: with the file's tokenizer and template."""
    flags = {"model_name_or_path": str(mixed), "dataset_name_or_path": str(few_samples), "max_steps": 2,
             "src_length": 160, "max_length": 256, "zero_padding": True}  # fmt: skip
    sft(SftFlags(**flags, output_dir=str(tmp_path / "sft")))
    lora(LoraFlags(**flags, output_dir=str(tmp_path / "lora")))
    merge(MergeFlags(str(mixed), str(tmp_path / "lora"), str(tmp_path / "merged")))
    for name in ("sft", "merged"):
        assert (tmp_path / name / "chat_template.jinja").read_text() == CHAT
        assert config_of(tmp_path / name) == config_of(mixed)
        dtypes = Llama.from_pretrained(tmp_path / name).stored_dtypes
        assert set(dtypes.values()) == {"F32", "F16", "BF16"}
    export(ExportFlags(str(mixed), str(tmp_path / "exported")))
    capsys.readouterr()
    asked = PredictFlags(str(tmp_path / "exported"), prompts=("a b",), decode_strategy="greedy_search", max_length=5)
    predict(asked)
    answers = json.loads(capsys.readouterr().out.splitlines()[-1])
    theirs = AutoModelForCausalLM.from_pretrained(mixed.parent, gguf_file=mixed.name, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(mixed.parent, gguf_file=mixed.name)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "a b"}], add_generation_prompt=True, return_tensors="pt"
    )
    expected = theirs.generate(**prompt, max_new_tokens=5, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert answers["output"] == tokenizer.decode(expected, skip_special_tokens=True)


@pytest.mark.parametrize(
    "arch, changes, words",
    [
        ("gemma", {}, "general.architecture must be llama or qwen2, got 'gemma'"),
        ("llama", {"llama.expert_count": 8}, "llama.expert_count must not be there, got 8"),
        ("llama", {"llama.attention.scale": 0.5}, "llama.attention.scale must not be there"),
        ("llama", {"llama.rope.dimension_count": 8}, "rope.dimension_count must be 16, as the keys"),
        ("llama", {"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 2.0}, "got 'longrope'"),
        ("llama", {"llama.block_count": None}, "llama.block_count must be there"),
        ("llama", {"llama.block_count": 1}, "the tensor model.layers.1.* must not be there"),
        ("llama", {"llama.block_count": 3}, "the tensor model.layers.2.* must be there"),
        ("llama", {"llama.feed_forward_length": 64}, r"must be \[64, 64\], got \[96, 64\]"),
        ("llama", {"llama.attention.head_count_kv": [2, 1]}, "must be equal in all layers"),
        ("llama", {"split.count": 3}, "must be the whole model, got one file of 3"),
        ("llama", {"tokenizer.ggml.eos_token_id": None}, "eos_token_id must be there"),
        ("llama", {"tokenizer.ggml.pre": "poro-chat"}, "tokenizer.ggml.pre must be gpt-2, .*got 'poro-chat'"),
        ("llama", {"tokenizer.ggml.model": "t5"}, "tokenizer.ggml.model must be gpt2 or llama, got 't5'"),
        ("llama", {"tokenizer.ggml.merges": None}, "tokenizer.ggml.merges must be there"),
    ],
)
def test_what_is_not_covered_is_refused_by_name(folder, tmp_path, arch, changes, words):
    path = write(tmp_path / "model.gguf", folder, arch=arch, changes=changes)
    with pytest.raises(ValueError, match=f"model.gguf: .*(?:{words})"):
        Tokenizer.from_pretrained(path)
        Llama.from_pretrained(path)


def test_types_that_are_not_read_are_refused_by_name(folder, tmp_path):
    path = write(tmp_path / "model.gguf", folder, lambda name: Type.Q5_0 if "up_proj" in name else Type.Q8_0)
    with pytest.raises(ValueError, match=r"model.layers.0.mlp.up_proj.weight must be F32, .*got Q5_0. llama.cpp's"):
        Llama.from_pretrained(path)


def test_factors_of_frequencies_are_those_of_llama_3_or_refused(folder, tmp_path):
    ones, others = np.ones(8, np.float32), np.linspace(1, 3, 8, dtype=np.float32)
    path = write(tmp_path / "ones.gguf", folder, tensors={"rope_freqs.weight": ones})
    assert config_of(path) == config_of(folder)
    changes = {"llama.rope.freq_base": 500000.0}
    theirs = LlamaConfig(hidden_size=64, num_attention_heads=4, head_dim=16, rope_parameters={
        "rope_type": "llama3", "factor": 32.0, "rope_theta": 500000.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192})  # fmt: skip
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](theirs, "cpu")
    factors = (500000.0 ** (-torch.arange(0, 16, 2) / 16) / scaled).numpy()
    path = write(tmp_path / "llama3.gguf", folder, changes=changes, tensors={"rope_freqs.weight": factors})
    np.testing.assert_allclose(config_of(path).rotary_frequencies(), scaled, rtol=1e-6)
    path = write(tmp_path / "others.gguf", folder, tensors={"rope_freqs.weight": others})
    with pytest.raises(ValueError, match=r"others.gguf: rope_freqs.weight must hold factors of 1 or those of Llama 3"):
        config_of(path)


def test_the_family_is_read_from_metadata(folder, tmp_path):
    """A sliding window makes a Mistral of a llama; yarn and linear scaling; a second end."""
    scaling = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0,
               "llama.rope.scaling.original_context_length": 64}  # fmt: skip
    changes = {**scaling, "llama.attention.sliding_window": 32, "tokenizer.ggml.eot_token_id": 7}
    config = config_of(write(tmp_path / "model.gguf", folder, changes=changes))
    assert (config.model_type, config.sliding_window, config.eos_token_ids) == ("mistral", 32, (2, 7))
    assert config.rope_scaling.to_dict()["rope_type"] == "yarn" and config.rope_scaling.factor == 4.0


def test_logits_of_qwen2_are_those_of_transformers(folder, tmp_path):
    """Its rows stand as in Hugging Face's folders, and queries, keys and values have biases."""
    random = np.random.default_rng(2)
    biases = {
        f"blk.{layer}.attn_{name}.bias": random.normal(0, 0.3, size).astype(np.float32)
        for layer in range(2)
        for name, size in (("q", 64), ("k", 32), ("v", 32))
    }
    path = write(tmp_path / "model.gguf", folder, arch="qwen2", tensors=biases,
                 changes={"qwen2.rope.dimension_count": None, "tokenizer.ggml.pre": "qwen2"})  # fmt: skip
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32).eval()
    ids = random.integers(0, 512, (2, 20))
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(Llama.from_pretrained(path)(paddle.to_tensor(ids)).numpy(), expected, atol=2e-6)


def test_a_damaged_file_is_named(mixed, tmp_path):
    content = mixed.read_bytes()
    for name, damaged in (("short", content[: len(content) // 2]), ("none", b""), ("other", b"PK" + content[2:])):
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{name}.gguf: truncated or not a GGUF file"):
            Llama.from_pretrained(path)
    with pytest.raises(FileNotFoundError, match="nowhere.gguf: not found"):
        Llama.from_pretrained(tmp_path / "nowhere.gguf")


def test_which_file_a_folder_means(tmp_path):
    assert gguf_of(tmp_path) is None and gguf_of("some/model.gguf") == Path("some/model.gguf")
    (tmp_path / "a.gguf").touch()
    assert gguf_of(tmp_path) == tmp_path / "a.gguf"
    (tmp_path / "b.gguf").touch()
    with pytest.raises(ValueError, match=r"must hold one GGUF file, got a.gguf, b.gguf. Name the file"):
        gguf_of(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert gguf_of(tmp_path) is None

"""GGUF files of small models, written with ggml's library `gguf` as llama.cpp's converter does."""

from __future__ import annotations

import json
from functools import partial

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf.quants import quantize
from safetensors.numpy import load_file

from examples.llama2_13b.folders.gguf_file import OF_LAYER, WHOLE
from tests.llama import blocks_of_256

CONTROL, NORMAL = 3, 1
BLOCKS_OF_256 = {Type.Q4_K: blocks_of_256.q4_k, Type.Q6_K: blocks_of_256.q6_k}


def tensors_of(folder):
    """By the names of Hugging Face."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    return {
        name: value for file in set(index["weight_map"].values()) for name, value in load_file(folder / file).items()
    }


def permuted(weight, heads):
    """Rows of q or k as llama.cpp wants them: element 0 of a head beside element head_dim / 2, and so on."""
    order = np.arange(len(weight)).reshape(heads, 2, -1).transpose(0, 2, 1).ravel()
    return weight[order]


def their_name(name):
    module, _, kind = name.rpartition(".")
    for gguf_name, ours in WHOLE.items():
        if module == ours:
            return f"{gguf_name}.{kind}"
    _, _, number, rest = module.split(".", 3)
    return f"blk.{number}.{next(key for key, value in OF_LAYER.items() if value == rest)}.{kind}"


def write(path, folder, type_of=lambda name: Type.F32, arch="llama", changes=None, tensors=None, tokenizer="gpt2"):
    """The model of a folder as a file.

    Args:
        type_of: the type of a tensor, by its name in Hugging Face's folder.
        changes: metadata to write beside or instead of the usual; None leaves a key out.
        tensors: more, by llama.cpp's names.
    """
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(path, arch)
    for key, value in {**metadata(config, arch), **vocabulary(folder, config, tokenizer), **(changes or {})}.items():
        if value is not None:
            add(writer, key, value)
    for name, value in tensors_of(folder).items():
        module, heads = name.split(".")[-2], config["num_attention_heads"]
        if arch == "llama" and module in ("q_proj", "k_proj"):
            value = permuted(value, heads if module == "q_proj" else config["num_key_value_heads"])
        kind = Type.F32 if value.ndim == 1 else type_of(name)
        encode = BLOCKS_OF_256.get(kind, partial(quantize, qtype=kind))
        writer.add_tensor(their_name(name), encode(value), raw_dtype=kind)
    for name, value in (tensors or {}).items():
        writer.add_tensor(name, value)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return path


def add(writer, key, value):
    kind = {bool: "bool", int: "uint32", float: "float32", str: "string"}.get(type(value), "array")
    getattr(writer, f"add_{kind}")(key, value)


def metadata(config, arch):
    return {
        f"{arch}.context_length": config["max_position_embeddings"],
        f"{arch}.block_count": config["num_hidden_layers"],
        f"{arch}.embedding_length": config["hidden_size"],
        f"{arch}.feed_forward_length": config["intermediate_size"],
        f"{arch}.attention.head_count": config["num_attention_heads"],
        f"{arch}.attention.head_count_kv": config["num_key_value_heads"],
        f"{arch}.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        f"{arch}.rope.freq_base": config["rope_theta"],
        f"{arch}.rope.dimension_count": config["head_dim"],
        f"{arch}.vocab_size": config["vocab_size"],
    }


def vocabulary(folder, config, kind):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    special = {token["content"] for token in tokenizer["added_tokens"] if token["special"]}
    names = sorted(vocab, key=vocab.get)
    names += [f"<unused_{number}>" for number in range(config["vocab_size"] - len(names))]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    return {
        "tokenizer.ggml.model": kind,
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": names,
        "tokenizer.ggml.token_type": [CONTROL if name in special or "<unused" in name else NORMAL for name in names],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": config["bos_token_id"],
        "tokenizer.ggml.eos_token_id": config["eos_token_id"],
        "tokenizer.ggml.padding_token_id": config["pad_token_id"],
    }

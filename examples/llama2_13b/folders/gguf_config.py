"""What a GGUF file says of its model, as the fields of `config.json`."""

from __future__ import annotations

from typing import Any

import numpy as np

from examples.llama2_13b.folders.gguf_file import ROPE_FACTORS, GGUFFile
from examples.llama2_13b.folders.rope import DEFAULT_THETA
from examples.llama2_13b.folders.rope_scaling import Llama3

ARCHITECTURES = ("llama", "qwen2")  # Mistral's models are stored as llama
SIZES = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "attention.sliding_window": "sliding_window",
}
REQUIRED = ("context_length", "block_count", "embedding_length", "feed_forward_length", "attention.head_count",
            "attention.layer_norm_rms_epsilon")  # fmt: skip
SENTENCEPIECE_IDS = {"bos": 1, "eos": 2}  # where a file with such a vocabulary does not say
MORE_ENDS = ("eot", "eom")  # of a turn and of a message; answers end there in llama.cpp
# Keys that change nothing here, whatever they say, or with these values.
SILENT = ("vocab_size", "rope.dimension_count", "attention.key_length", "attention.value_length", "tensor_data_layout")
NEUTRAL = {"expert_count": 0, "expert_used_count": 0, "attention.causal": True, "use_parallel_residual": False,
           "rope.scale_linear": 1.0, "attention.scale": 0.0, "logit_scale": 1.0}  # fmt: skip
SCALING = "rope.scaling."
LLAMA3: dict[str, Any] = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # of 3.1 to 3.3


def fields(file: GGUFFile) -> dict[str, Any]:
    """The file's description of its model, by the names of `config.json`.

    Raises:
        ValueError: the architecture or a key is not covered, or a size is missing. It is named.
    """
    arch = file.architecture
    if arch not in ARCHITECTURES:
        raise ValueError(f"{file.index}: general.architecture must be {' or '.join(ARCHITECTURES)}, got {arch!r}")
    for key in REQUIRED:
        if file.get(f"{arch}.{key}") is None:
            raise ValueError(f"{file.index}: {arch}.{key} must be there, got none")
    _require_covered(file)
    sizes = {ours: _one(file, f"{arch}.{key}") for key, ours in SIZES.items() if f"{arch}.{key}" in file.keys}
    embedding = "model.embed_tokens.weight"
    if not file.has(embedding):
        raise ValueError(f"{file.index}: token_embd.weight must be there, got none")
    return {
        "model_type": "mistral" if arch == "llama" and "sliding_window" in sizes else arch,
        "hidden_act": "silu",
        "vocab_size": file.shape(embedding)[0],
        "head_dim": _head_dim(file),
        "tie_word_embeddings": not file.has("lm_head.weight"),
        **sizes,
        **_token_ids(file, file.shape(embedding)[0]),
        **_scaling(file),
    }


def _one(file: GGUFFile, key: str) -> Any:
    """A number; where the file has one for each layer, they must be equal."""
    value = file.get(key)
    if not isinstance(value, list):
        return value
    if len(set(value)) != 1:
        raise ValueError(f"{file.index}: {key} must be equal in all layers, got {value[:8]}")
    return value[0]


def _head_dim(file: GGUFFile) -> int:
    for key in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        given = file.get(f"{file.architecture}.{key}", file.head_dim)
        if given != file.head_dim:
            rule = f"{file.head_dim}, as the keys' length: whole heads are rotated"
            raise ValueError(f"{file.index}: {file.architecture}.{key} must be {rule}, got {given}")
    return file.head_dim


def _token_ids(file: GGUFFile, vocab_size: int) -> dict[str, Any]:
    """An answer ends at the end of a text, of a turn and of a message, where these are other tokens."""
    end = token_id(file, "eos")
    if end is None:
        raise ValueError(f"{file.index}: tokenizer.ggml.eos_token_id must be there, got none")
    more = [token for role in MORE_ENDS if (token := token_id(file, role)) is not None and 0 <= token < vocab_size]
    return {
        "bos_token_id": token_id(file, "bos"),
        "eos_token_id": list(dict.fromkeys([end, *more])),
        "pad_token_id": token_id(file, "padding"),
    }


def token_id(file: GGUFFile, role: str) -> int | None:
    """Of `bos`, `eos` and so on. Source: llama.cpp's src/llama-vocab.cpp."""
    defaults = SENTENCEPIECE_IDS if file.get("tokenizer.ggml.model") == "llama" else {}
    number: int | None = file.get(f"tokenizer.ggml.{role}_token_id", defaults.get(role))
    return number


def _require_covered(file: GGUFFile) -> None:
    prefix = f"{file.architecture}."
    for key in file.keys:
        name = key.removeprefix(prefix)
        if name == key or name in (*SIZES, *SILENT) or name.startswith(SCALING):
            continue
        if name not in NEUTRAL or file.get(key) != NEUTRAL[name]:
            raise ValueError(f"{file.index}: {key} must not be there, got {file.get(key)}; it is not covered")


def _scaling(file: GGUFFile) -> dict[str, Any]:
    prefix = f"{file.architecture}.{SCALING}"
    said = {key.removeprefix(prefix): file.get(key) for key in file.keys if key.startswith(prefix)}
    kind, factors = said.get("type", "none"), file.rope_factors()
    if factors is not None and not (factors == 1).all():
        return {"rope_scaling": _llama3(file, factors)}
    if kind == "none" or said.get("factor", 1.0) == 1.0:
        return {}
    if kind not in ("linear", "yarn"):
        raise ValueError(f"{file.index}: {prefix}type must be none, linear or yarn, got {kind!r}")
    scaling = {"rope_type": kind, "factor": said["factor"]}
    if "original_context_length" in said:
        scaling["original_max_position_embeddings"] = said["original_context_length"]
    if other := sorted(set(said) - {"type", "factor", "original_context_length", "finetuned"}):
        raise ValueError(f"{file.index}: {prefix}{other[0]} must not be there, got {said[other[0]]}")
    return {"rope_scaling": scaling}


def _llama3(file: GGUFFile, factors: Any) -> dict[str, Any]:
    """The scaling of Llama 3 whose factors these are: the file has them without what they were computed from."""
    scaling = {"rope_type": "llama3", "factor": float(factors[-1]), **LLAMA3}
    theta = file.get(f"{file.architecture}.rope.freq_base", DEFAULT_THETA)
    unscaled = theta ** (-np.arange(len(factors)) / len(factors))
    if not np.allclose(
        unscaled / factors, Llama3(float(factors[-1]), **LLAMA3).frequencies(unscaled, theta), rtol=1e-5
    ):
        rule = f"those of Llama 3 with {LLAMA3}"
        raise ValueError(f"{file.index}: {ROPE_FACTORS} must hold factors of 1 or {rule}, got others")
    return scaling

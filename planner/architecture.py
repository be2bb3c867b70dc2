"""The sizes of a decoder that decide its parameters, FLOPs and memory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionkit.errors import argument_error

MODEL_TYPES = ("llama", "mistral", "qwen2")  # whose layers are those of `Architecture`
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")  # of Mixtral, Qwen and DeepSeek
LLAMA = "Give the configuration of a Llama"
THERE = "Give a path that is there: of a model its config.json is enough, and the Llama example has some in configs/"


@dataclass(frozen=True)
class Architecture:
    """A decoder of equal layers, by Hugging Face's names.

    Args:
        num_key_value_heads: fewer than num_attention_heads where groups of query heads share them.
        is_gated: the MLP has gate and up (SwiGLU), else one widening matrix (GPT).
        is_tied: embedding and head are one parameter.
        has_biases: each matrix of a layer has a bias, and each norm (GPT).
    """

    name: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    is_gated: bool = True
    is_tied: bool = False
    has_biases: bool = False

    @property
    def queries(self) -> int:
        """Width of all query heads."""
        return self.num_attention_heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.num_key_value_heads * self.head_dim

    @property
    def widened(self) -> int:
        """Output width of the MLP's first product."""
        return (2 if self.is_gated else 1) * self.intermediate_size

    @property
    def matrices_of_layer(self) -> int:
        """Elements of a layer's matrices."""
        attention = self.hidden_size * (self.queries + 2 * self.keys) + self.queries * self.hidden_size
        return attention + self.hidden_size * (self.widened + self.intermediate_size)

    @property
    def parameters_of_layer(self) -> int:
        norms = 2 * self.hidden_size
        if self.has_biases:
            norms *= 2
            norms += self.queries + 2 * self.keys + self.hidden_size + self.widened + self.hidden_size
        return self.matrices_of_layer + norms

    @property
    def parameters(self) -> int:
        """Of the whole model. Learned positions are not counted."""
        vocabularies = (1 if self.is_tied else 2) * self.vocab_size * self.hidden_size
        norm = (2 if self.has_biases else 1) * self.hidden_size
        return vocabularies + self.num_hidden_layers * self.parameters_of_layer + norm

    def flops_of_token(self, sequence: int, is_causal: bool = True) -> float:
        """Model FLOPs of a token, forward and backward, for MFU.

            6 (matrices of the layers + head) + 12 layers queries sequence, half of the last where causal

        Source: Chowdhery et al. 2022, arXiv:2204.02311, appendix B. Nothing that is computed again counts.
        """
        matrices = self.num_hidden_layers * self.matrices_of_layer + self.vocab_size * self.hidden_size
        scores = 12.0 * self.num_hidden_layers * self.queries * sequence
        return 6.0 * matrices + (scores / 2 if is_causal else scores)


def read(path: str | Path) -> Architecture:
    """From a Hugging Face folder, or a config.json of one.

    Raises:
        ValueError: as `configuration`; a size is missing, or is no whole number above 0.
    """
    file = _file(path)
    return _of(configuration(path), file.parent.name if file.name == "config.json" else file.stem)


def configuration(path: str | Path) -> dict[str, Any]:
    """The fields of a Hugging Face folder's config.json, or of such a file.

    Raises:
        ValueError: there is no such file, it is no JSON object, its model_type is none of MODEL_TYPES, or it is no
            dense decoder: only some of its weights work on a token.
    """
    file = _file(path)
    if not file.is_file():
        raise argument_error(
            "plan", "--model", "a Hugging Face folder, or a config.json", repr(str(path)), advice=THERE
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise argument_error("plan", "--model", "a config.json in JSON", str(file), str(error)) from None
    if not isinstance(config, dict):
        raise argument_error("plan", "--model", "a JSON object with the model's sizes", str(file), advice=LLAMA)
    if (name := config.get("model_type") or MODEL_TYPES[0]) not in MODEL_TYPES:
        rule = f"of model_type {' or '.join(MODEL_TYPES)}"
        raise argument_error("plan", "--model", rule, repr(name), "the layers of others are not counted", LLAMA)
    for name in EXPERTS:
        if (config.get(name) or 1) != 1:
            raise argument_error("plan", "--model", f"a dense decoder, without {name}", config[name], advice=LLAMA)
    return config


def size(config: dict[str, Any], name: str) -> int:
    """A field that is a whole number above 0."""
    if name not in config:
        raise argument_error("plan", "--model", f"a configuration with {name}", "none", advice=LLAMA)
    found = config[name]
    if type(found) is not int or found < 1:
        raise argument_error("plan", "--model", f"a configuration whose {name} is a whole number above 0", repr(found))
    return found


def _file(path: str | Path) -> Path:
    return Path(path) / "config.json" if Path(path).is_dir() else Path(path)


def _of(config: dict[str, Any], name: str) -> Architecture:
    def own(field: str, otherwise: int) -> int:
        return otherwise if config.get(field) is None else size(config, field)

    heads, hidden = size(config, "num_attention_heads"), size(config, "hidden_size")
    if config.get("head_dim") is None and hidden % heads:
        rule = f"a configuration whose num_attention_heads divides hidden_size {hidden}, or with head_dim"
        raise argument_error("plan", "--model", rule, heads)
    return Architecture(
        name=name,
        hidden_size=hidden,
        num_hidden_layers=size(config, "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=own("num_key_value_heads", heads),
        head_dim=own("head_dim", hidden // heads),
        intermediate_size=size(config, "intermediate_size"),
        vocab_size=size(config, "vocab_size"),
        is_tied=bool(config.get("tie_word_embeddings", False)),
    )

"""The model's configuration: `config.json` of a Hugging Face folder."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from examples.llama2_13b.folders import family, quantization, rope
from examples.llama2_13b.folders.family import FULL, MEMBERS, SLIDING
from examples.llama2_13b.folders.rope_scaling import Frequencies, RopeScaling
from examples.llama2_13b.io.text import parse_object

# Values with which a field means what this model does; null and absence mean the same. Any other is another model.
# family.py says what is different for one member of the family.
SUPPORTED: dict[str, tuple[Any, ...] | None] = {
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    # the MLP
    "hidden_act": ("silu", "swish"),
    "hidden_activation": ("silu", "swish"),
    "mlp_bias": (False,),
    "mlp_layer_types": ("dense",),
    "num_local_experts": (0, 1),
    # attention: its terms, its scale, which keys a token sees
    "attention_bias": (False,),
    "qkv_bias": (False,),
    "use_qk_norm": (False,),
    "qk_norm": (False,),
    "qk_layernorm": (False,),
    "clip_qkv": (),
    "attention_dropout": (0,),
    "attention_multiplier": (),
    "query_pre_attn_scalar": (),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "attn_logit_softcapping": (),
    "sliding_window": (),
    "use_sliding_window": (False,),
    "layer_types": ("full_attention",),
    "is_causal": (True,),
    "use_bidirectional_attention": (False,),
    # positions; see rope.py for the base of the frequencies
    "partial_rotary_factor": (1,),
    "rotary_pct": (1,),
    "rotary_percent": (1,),
    "rotary_dim": (),
    "rotary_emb_base": (),
    "rotary_base": (),
    "rope_base": (),
    "rope_freq_base": (),
    "rope_ratio": (1,),
    "rope_interleave": (False,),
    "rope_interleaved": (False,),
    "rope_scaling_type": (),
    "rope_scaling_factor": (1,),
    "use_scaled_rope": (False,),
    "use_long_sequence_strategies": (False,),
    "no_rope_layers": (1,),
    "no_rope_layer_interval": (),
    "alibi": (False,),
    # embedding, residual stream and scores
    "embedding_multiplier": (1,),
    "residual_multiplier": (1,),
    "scale_embedding": (False,),
    "scale_emb": (1,),
    "scale_depth": (),
    "use_parallel_residual": (False,),
    "logits_scaling": (1,),
    "logit_scale": (1,),
    "logits_soft_cap": (),
    "final_logit_softcapping": (),
    # how the weights are stored
    "compression_config": (),
    "quantization": (),
    "pruned_heads": ({},),
}


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes and constants, by Hugging Face's names.

    Args:
        max_position_embeddings: positions of a sequence at most, however they are scaled.
        head_dim: default hidden_size / num_attention_heads.
        num_key_value_heads: default num_attention_heads; fewer are shared by groups of query heads.
        initializer_range: standard deviation of new weights.
        tie_word_embeddings: embedding and head are one parameter.
        bos_token_id: None, null in files, where no text begins with a token of its own.
        eos_token_id: the end that training teaches, the first of those that a file lists.
        other_eos_token_ids: at which an answer ends, too.
        pad_token_id: None without a padding token; files say so with null, -1 or nothing. No result depends on it.
        model_type: which member of the family, see `family.MEMBERS`.
        rope_scaling: of the rotary frequencies.
        attention_bias: of a llama: all four projections of its attention have a bias.
        sliding_window: tokens that a token attends to at most, its own among them; None: all before it.
        sliding_layers: whether each layer has the window; empty: all of them.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    rms_norm_eps: float
    num_key_value_heads: int = 0
    head_dim: int = 0
    rope_theta: float = 10000.0
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int = 2
    pad_token_id: int | None = None
    other_eos_token_ids: tuple[int, ...] = ()
    model_type: str = "llama"
    rope_scaling: RopeScaling | None = None
    attention_bias: bool = False
    sliding_window: int | None = None
    sliding_layers: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        self._require(self.model_type in MEMBERS, "model_type", " or ".join(MEMBERS))
        if not self.num_key_value_heads:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        self._require_positive()
        if not self.head_dim:
            self._require(
                self.hidden_size % self.num_attention_heads == 0,
                "hidden_size",
                f"a multiple of num_attention_heads {self.num_attention_heads} when head_dim is not given",
            )
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        heads = self.num_attention_heads
        self._require(self.head_dim > 0 and self.head_dim % 2 == 0, "head_dim", "even, for rotary pairs")
        self._require(heads % self.num_key_value_heads == 0, "num_key_value_heads", f"a divisor of {heads} heads")
        self._require_token_ids()
        self._require_windows()
        biased = self.model_type == "llama" or not self.attention_bias
        self._require(biased, "attention_bias", f"false for {self.model_type}, whose biases are always the same")

    def _require_token_ids(self) -> None:
        rule = f"at least 0 and below vocab_size {self.vocab_size}"
        begin = () if self.bos_token_id is None else (self.bos_token_id,)
        for name, ids in (("bos_token_id", begin), ("eos_token_id", self.eos_token_ids)):
            right = all(type(token) is int and 0 <= token < self.vocab_size for token in ids)
            if not right:
                raise ValueError(f"config: {name} must be {rule}, got {', '.join(map(repr, ids))}")
        if self.pad_token_id == -1:
            object.__setattr__(self, "pad_token_id", None)
        padded = self.pad_token_id is None or 0 <= self.pad_token_id < self.vocab_size
        self._require(padded, "pad_token_id", f"{rule}, or null: this model needs no padding token")

    def _require_windows(self) -> None:
        window, layers = self.sliding_window, self.num_hidden_layers
        has_none = window is None and not self.sliding_layers
        self._require(has_none or self.model_type != "llama", "sliding_window", "null for llama")
        some = self.model_type == "qwen2" and window is not None and len(self.sliding_layers) == layers
        rule = f"empty, or {layers} values for a qwen2 with a sliding window"
        self._require(some or not self.sliding_layers, "sliding_layers", rule)

    def _require_positive(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type not in ("int", "float", "bool", "int | None") or (value is None and "None" in field.type):
                continue
            if field.type == "bool":
                self._require(isinstance(value, bool), field.name, "true or false")
                continue
            kind = (int, float) if field.type == "float" else int
            right = isinstance(value, kind) and not isinstance(value, bool)
            self._require(right, field.name, "a number" if field.type == "float" else "an integer")
            self._require(math.isfinite(value), field.name, "finite")
            if not field.name.endswith("_token_id") and field.name != "head_dim":
                self._require(value > 0, field.name, "positive")

    def _require(self, condition: bool, name: str, rule: str) -> None:
        if not condition:
            raise ValueError(f"config: {name} must be {rule}, got {getattr(self, name)!r}")

    @classmethod
    def from_dict(cls, fields: dict[str, Any], source: str) -> LlamaConfig:
        """The configuration, once every field that would change the arithmetic is known to be covered.

        Raises:
            ValueError: a field has a value that this model does not cover, is missing or impossible.
        """
        fields = {**fields, "model_type": fields.get("model_type") or "llama"}
        member = family.member(fields["model_type"], source)
        quantization.of(fields, source)
        _require_supported(fields, {**SUPPORTED, **member.supported}, source)
        fields = {**member.defaults, **fields}
        fields |= {"rope_theta": rope.theta(fields, source), "rope_scaling": rope.scaling(fields, source)}
        fields |= _windows(fields, source) | _ends(fields, source) | _biases(fields)
        known = {field.name for field in dataclasses.fields(cls)}
        if "eos_token_id" in fields and fields["eos_token_id"] is None:
            raise ValueError(f"{source}: eos_token_id must be an integer, got null. Write the tokenizer's")
        required = {field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING}
        if missing := sorted(required - {name for name, value in fields.items() if value is not None}):
            raise ValueError(f"{source}: {', '.join(missing)} must be there, got none. Add what is missing")
        try:
            said = {name: value for name, value in fields.items() if value is not None or name == "bos_token_id"}
            return cls(**{name: value for name, value in said.items() if name in known})
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None

    @classmethod
    def from_json(cls, path: str | Path) -> LlamaConfig:
        return cls.from_dict(read_fields(path), str(path))

    def to_dict(self) -> dict[str, Any]:
        """`config.json` as other programs read it."""
        fields = {"architectures": [MEMBERS[self.model_type].architecture], "hidden_act": "silu", **vars(self)}
        for name in ("other_eos_token_ids", "sliding_layers", "sliding_window", "attention_bias"):
            del fields[name]
        fields["rope_scaling"] = self.rope_scaling.to_dict() if self.rope_scaling else None
        fields["eos_token_id"] = list(self.eos_token_ids) if self.other_eos_token_ids else self.eos_token_id
        return {**fields, **self._own_fields(), "torch_dtype": "float32"}

    def _own_fields(self) -> dict[str, Any]:
        """Those that one member of the family has."""
        if self.model_type == "llama":
            return {"attention_bias": self.attention_bias, "mlp_bias": False}
        if self.model_type == "mistral":
            return {"sliding_window": self.sliding_window}
        types = [FULL if self.window_of(layer) is None else SLIDING for layer in range(self.num_hidden_layers)]
        first = types.index(SLIDING) if SLIDING in types else self.num_hidden_layers  # older transformers read this
        window = {"use_sliding_window": SLIDING in types, "sliding_window": self.sliding_window}
        return {**window, "max_window_layers": first, "layer_types": types}

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return (self.eos_token_id, *self.other_eos_token_ids)

    def ending_with(self, token: int) -> LlamaConfig:
        """The same with this one of its end tokens first."""
        others = tuple(each for each in self.eos_token_ids if each != token)
        return dataclasses.replace(self, eos_token_id=token, other_eos_token_ids=others)

    @property
    def has_qkv_bias(self) -> bool:
        """Whether queries, keys and values have biases."""
        return self.attention_bias or self.model_type == "qwen2"

    @property
    def has_output_bias(self) -> bool:
        """Whether attention's output projection has one."""
        return self.attention_bias

    def window_of(self, layer: int) -> int | None:
        """The layer's sliding window."""
        is_sliding = self.sliding_layers[layer] if self.sliding_layers else True
        return self.sliding_window if is_sliding else None

    def rotary_frequencies(self) -> Frequencies:
        """[head_dim / 2]: by how much each pair of a head's elements turns from one position to the next."""
        unscaled = self.rope_theta ** (-np.arange(0, self.head_dim, 2) / self.head_dim)
        return unscaled if self.rope_scaling is None else self.rope_scaling.frequencies(unscaled, self.rope_theta)


def read_fields(path: str | Path) -> dict[str, Any]:
    """What config.json says, unchecked."""
    try:
        return parse_object(Path(path).read_bytes(), path)
    except FileNotFoundError:
        advice = "A model folder holds config.json and the weights"
        if (Path(path).parent / "adapter_config.json").exists():
            advice = "The folder holds an adapter. merge makes a model of it; lora takes it as --lora_path"
        raise FileNotFoundError(f"{path}: not found. {advice}") from None


def _require_supported(fields: dict[str, Any], supported: dict[str, tuple[Any, ...] | None], source: str) -> None:
    for name, values in supported.items():
        if values is not None and not _is_supported(fields.get(name), values):
            rule = " or ".join(map(json.dumps, values)) or "null"
            got = f"got {json.dumps(fields[name])}"
            raise ValueError(f"{source}: {name} must be {rule}, {got}; this model does not cover others")


def _windows(fields: dict[str, Any], source: str) -> dict[str, Any]:
    window, sliding = family.windows(fields, source)
    return {"sliding_window": window, "sliding_layers": () if all(sliding) else sliding}


def _ends(fields: dict[str, Any], source: str) -> dict[str, Any]:
    """eos_token_id may be a list."""
    ends = fields.get("eos_token_id")
    if not isinstance(ends, list):
        return {"other_eos_token_ids": ()}
    if not ends:
        raise ValueError(f"{source}: eos_token_id must be an integer or a list of some, got []")
    return {"eos_token_id": ends[0], "other_eos_token_ids": tuple(ends[1:])}


def _biases(fields: dict[str, Any]) -> dict[str, Any]:
    """Those of the other members follow from their type."""
    return {} if fields["model_type"] == "llama" else {"attention_bias": False}


def _is_supported(value: Any, values: tuple[Any, ...]) -> bool:
    """A list has a value for each layer."""
    return all(one is None or one in values for one in (value if isinstance(value, list) else [value]))

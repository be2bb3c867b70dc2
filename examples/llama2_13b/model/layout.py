"""Which Hugging Face tensors make up each of our parameters.

On disk a linear weight is [out_features, in_features] and query, key, value, gate and up stand alone; in memory it is
[in_features, out_features], and those that read the same input are one matrix, side by side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from examples.llama2_13b.model.config import LlamaConfig

Array = NDArray[np.float32]

# The axis on disk: whole heads and columns of the MLP come out of the first two and go into the others.
DIVIDED = {"self_attn.qkv_proj": 0, "mlp.gate_up_proj": 0, "self_attn.o_proj": 1, "mlp.down_proj": 1}


@dataclass(frozen=True)
class Part:
    """A tensor on disk: its name and shape there, and the axis that tensor-parallel ranks divide, if any.

    Args:
        is_transposed: stored as [in_features, out_features], the layout of Paddle's own files.
    """

    name: str
    shape: tuple[int, ...]
    axis: int | None = None
    is_transposed: bool = False

    def transposed(self) -> Part:
        return replace(
            self,
            shape=self.shape[::-1],
            axis=None if self.axis is None else 1 - self.axis,
            is_transposed=not self.is_transposed,
        )

    def shard(self, size: int) -> Part:
        """One rank's."""
        return replace(self, shape=tuple(n // size if axis == self.axis else n for axis, n in enumerate(self.shape)))


def layout(config: LlamaConfig) -> dict[str, tuple[Part, ...]]:
    """Parameter name -> its parts, in the order of the columns."""
    hidden, vocab = config.hidden_size, config.vocab_size
    parts = {"embed_tokens.weight": (Part("model.embed_tokens.weight", (vocab, hidden)),)}
    for index in range(config.num_hidden_layers):
        parts |= _decoder_layer(config, index)
    parts["norm.weight"] = (Part("model.norm.weight", (hidden,)),)
    parts["lm_head.weight"] = (Part("lm_head.weight", (vocab, hidden)),)
    return parts


def _decoder_layer(config: LlamaConfig, index: int) -> dict[str, tuple[Part, ...]]:
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "input_layernorm": {"input_layernorm": (hidden,)},
        "self_attn.qkv_proj": {
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
        },
        "self_attn.o_proj": {"self_attn.o_proj": (hidden, queries)},
        "post_attention_layernorm": {"post_attention_layernorm": (hidden,)},
        "mlp.gate_up_proj": {"mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden)},
        "mlp.down_proj": {"mlp.down_proj": (hidden, inner)},
    }
    return {
        f"layers.{index}.{ours}.weight": tuple(
            Part(f"model.layers.{index}.{name}.weight", shape, DIVIDED.get(ours)) for name, shape in theirs.items()
        )
        for ours, theirs in shapes.items()
    }


def is_transposed(parameter: str) -> bool:
    return parameter.endswith("_proj.weight") or parameter == "lm_head.weight"


def join(parameter: str, tensors: list[Array]) -> Array:
    """The parameter from its parts."""
    if not is_transposed(parameter):
        return tensors[0]
    return np.concatenate([tensor.T for tensor in tensors], axis=1)


def split(parameter: str, value: Array, parts: tuple[Part, ...]) -> dict[str, Array]:
    """The parts of a parameter, or of anything of its shape such as a moment of the optimizer."""
    if not is_transposed(parameter):
        return {parts[0].name: value}
    ends = np.cumsum([part.shape[0] for part in parts])[:-1]
    columns = np.split(value, ends, axis=1)
    return {part.name: np.ascontiguousarray(column.T) for part, column in zip(parts, columns, strict=True)}


def own(tensor: Array, part: Part, rank: int, size: int) -> Array:
    """A rank's part of a whole tensor on disk; `safetensors_folder.Reader.read` reads no more than that."""
    return tensor if part.axis is None else np.split(tensor, size, axis=part.axis)[rank]


def merge(parameter: str, shards: list[Array], parts: tuple[Part, ...]) -> dict[str, Array]:
    """The parts of a parameter from the shards of all ranks, or from the one that all have."""
    pieces = [split(parameter, shard, tuple(part.shard(len(shards)) for part in parts)) for shard in shards]
    if len(shards) == 1:
        return pieces[0]
    return {part.name: np.concatenate([piece[part.name] for piece in pieces], axis=part.axis) for part in parts}

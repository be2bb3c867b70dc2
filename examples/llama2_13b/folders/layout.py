"""The table of parameters: which Hugging Face tensors make up each, and what the rest of the example asks of it.

On disk a linear weight is [out_features, in_features] and query, key, value, gate and up stand alone; in memory it is
[in_features, out_features], and those that read the same input are one matrix, side by side.

Model folder, optimizer and FLOPs formula read this table. A new kind of parameter is a row here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from examples.llama2_13b.folders.config import LlamaConfig
from fusionkit.parallel.parts import own_part

Array = NDArray[np.float32]
Table = dict[str, "Parameter"]  # by the names of the model's parameters and in their order

# The axis on disk: whole heads and columns of the MLP come out of the first two and go into the others.
DIVIDED = {"self_attn.qkv_proj": 0, "mlp.gate_up_proj": 0, "self_attn.o_proj": 1, "mlp.down_proj": 1}


@dataclass(frozen=True)
class Part:
    """A tensor on disk: its name and shape there, and the axis that tensor-parallel ranks divide, if any.

    Args:
        is_transposed: stored as [in_features, out_features], the layout of Paddle's own files.
        is_embedding: stored as [vocab_size, hidden_size] there too.
        copy: a name under which a file may hold the same tensor again.
    """

    name: str
    shape: tuple[int, ...]
    axis: int | None = None
    is_transposed: bool = False
    is_embedding: bool = False
    copy: str | None = None

    def transposed(self) -> Part:
        return replace(
            self,
            shape=self.shape[::-1],
            axis=None if self.axis is None else 1 - self.axis,
            is_transposed=not self.is_transposed,
        )

    def own(self, rank: int, size: int) -> tuple[slice, ...]:
        """Where a rank's shard stands in the whole tensor."""
        return tuple(own_part(n, rank, size) if axis == self.axis else slice(0, n) for axis, n in enumerate(self.shape))

    def shard(self, rank: int, size: int) -> Part:
        """A rank's."""
        return replace(self, shape=tuple(part.stop - part.start for part in self.own(rank, size)))

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Parameter:
    """A row of the table.

    Args:
        parts: the tensors on disk, in the order of the columns.
        is_linear: [in_features, out_features] in memory, the transpose of what is on disk. Other parts are joined along
            their first axis.
        is_decayed: weight decay applies.
        is_looked_up: tokens take rows of it, which costs no FLOPs.
        is_trainable: it gets gradients, and the optimizer has state for it.
        held_bytes: what it takes in memory, of all ranks together; None: 4 an element.
    """

    parts: tuple[Part, ...]
    is_linear: bool = True
    is_decayed: bool = True
    is_looked_up: bool = False
    is_trainable: bool = True
    held_bytes: int | None = None

    @property
    def size(self) -> int:
        """Elements, of all ranks together."""
        return sum(part.size for part in self.parts)

    def join(self, tensors: list[Array]) -> Array:
        """The parameter from its parts."""
        if len(tensors) == 1 and not self.is_linear:
            return tensors[0]
        if not self.is_linear:
            return np.concatenate(tensors)
        return np.concatenate([tensor.T for tensor in tensors], axis=1)

    def split(self, value: Array, rank: int = 0, size: int = 1) -> list[Array]:
        """A rank's part of each tensor on disk, from its shard of the parameter.

        The shard may be anything of the parameter's shape, such as a moment of the optimizer.
        """
        widths = [part.shard(rank, size).shape[0] for part in self.parts]
        columns = np.split(value, np.cumsum(widths)[:-1], axis=1 if self.is_linear else 0)
        if not self.is_linear:
            return columns
        return [np.ascontiguousarray(column.T) for column in columns]


def elements(table: Table) -> dict[str, int]:
    """Of every tensor on disk."""
    return {part.name: part.size for parameter in table.values() for part in parameter.parts}


def adapted(table: Table, factors: Table) -> Table:
    """The table of a frozen model with an adapter's factors beside it."""
    return {name: replace(parameter, is_trainable=False) for name, parameter in table.items()} | factors


def trainable(table: Table) -> Table:
    return {name: parameter for name, parameter in table.items() if parameter.is_trainable}


def layer_of(name: str, num_hidden_layers: int) -> int:
    """The layer on whose stage of a pipeline a parameter is: its own, the first, or the last."""
    begin, number, *_ = name.split(".")
    if begin == "layers":
        return int(number)
    return 0 if begin == "embed_tokens" else num_hidden_layers - 1


def layout(config: LlamaConfig) -> Table:
    """The table of a whole Llama, which `Llama.table` holds.

    A tied embedding is the head's weight, which tokens are looked up in: one row, so one gradient and one tensor on
    disk, under the embedding's name. It stands first, as its gradient is the last to be whole.
    """
    hidden, vocab = config.hidden_size, config.vocab_size
    embedding = Part("model.embed_tokens.weight", (vocab, hidden), axis=0, is_embedding=True)
    if config.tie_word_embeddings:
        table = {"lm_head.weight": Parameter((replace(embedding, copy="lm_head.weight"),))}
    else:
        table = {"embed_tokens.weight": Parameter((embedding,), is_linear=False, is_looked_up=True)}
    for index in range(config.num_hidden_layers):
        table |= _decoder_layer(config, index)
    table["norm.weight"] = _vector(Part("model.norm.weight", (hidden,)))
    if not config.tie_word_embeddings:
        table["lm_head.weight"] = Parameter((Part("lm_head.weight", (vocab, hidden), axis=0),))
    return table


def _vector(*parts: Part) -> Parameter:
    """Of a norm, or biases."""
    return Parameter(parts, is_linear=False, is_decayed=False)


def _biased(config: LlamaConfig) -> set[str]:
    """Linear layers with a bias."""
    flags = {"self_attn.qkv_proj": config.has_qkv_bias, "self_attn.o_proj": config.has_output_bias}
    return {name for name, is_there in flags.items() if is_there}


def _decoder_layer(config: LlamaConfig, index: int) -> Table:
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
    table, biased = {}, _biased(config)
    for ours, theirs in shapes.items():
        axis, begin = DIVIDED.get(ours), f"model.layers.{index}"
        parts = tuple(Part(f"{begin}.{name}.weight", shape, axis) for name, shape in theirs.items())
        table[f"layers.{index}.{ours}.weight"] = _vector(*parts) if axis is None else Parameter(parts)
        if ours in biased:  # of columns it is divided as they are, of rows it is not
            whose = axis if axis == 0 else None
            biases = (Part(f"{begin}.{name}.bias", shape[:1], whose) for name, shape in theirs.items())
            table[f"layers.{index}.{ours}.bias"] = _vector(*biases)
    return table


def own(tensor: Array, part: Part, rank: int, size: int) -> Array:
    """A rank's part of a whole tensor on disk; `safetensors_folder.Reader.read` reads no more than that."""
    return tensor[part.own(rank, size)]

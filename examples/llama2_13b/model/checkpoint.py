"""The model's weights in a Hugging Face folder, and whatever else has the parameters' shapes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from examples.llama2_13b.io import atomic
from examples.llama2_13b.io.remarks import say
from examples.llama2_13b.model import safetensors_folder, stored_dtypes
from examples.llama2_13b.model.layout import Array, Parameter, Part, Table, elements, layer_of
from examples.llama2_13b.parallel.tensor_parallel import ALONE, TensorParallel

MAX_SHARD_BYTES = safetensors_folder.MAX_SHARD_BYTES
PADDLENLP_NAME = ("model.", "llama.")  # how a name begins with transformers, and with PaddleNLP
# Weights of a model in other formats, and of adapters to it.
OTHER_WEIGHTS = (
    "pytorch_model*.bin",
    "pytorch_model.bin.index.json",
    "model_state*.pdparams",
    "tf_model.h5",
    "flax_model.msgpack",
    "adapter_config.json",
    "adapter_model.*",
)


class Reader:
    """One array for each parameter, checked against the table before any memory is taken for a model.

    Args:
        folder: with safetensors of that prefix.
        table: of the parameters.
        prefix: "model", or another set of tensors with its names and shapes.
        shards: whose part of each parameter is read; no more of it is held.

    Raises:
        FileNotFoundError, ValueError: see `safetensors_folder.Reader`.
    """

    def __init__(self, folder: str | Path, table: Table, prefix: str = "model", shards: TensorParallel = ALONE) -> None:
        self._shards = shards
        self._files = safetensors_folder.Reader(folder, prefix)
        unread = [*self._files.unread(), *other_weights(Path(folder))]
        if unread and prefix == "model" and shards.rank == 0:  # they may be of a later save
            say(f"{folder}: read is {self._files.index.name}, not {', '.join(unread)}", sys.stderr)
        self._table = table
        self._stored = {
            name: [self._stored_part(parameter, part) for part in parameter.parts] for name, parameter in table.items()
        }
        stored = [part for parts in self._stored.values() for part in parts]
        copies = {part.copy for part in stored}
        # Older folders hold the rotary frequencies, which the configuration gives.
        self._files.check(
            {part.name: part.shape for part in stored},
            ignored=lambda name: name.endswith("rotary_emb.inv_freq") or name in copies,
        )

    def _stored_part(self, parameter: Parameter, part: Part) -> Part:
        """As the file has it: its name there, and the layout that the file's metadata names."""
        theirs = part.name.replace(*PADDLENLP_NAME, 1)
        stored = replace(part, name=theirs) if self._files.has(theirs) else part
        is_in_out = parameter.is_linear and not part.is_embedding and self._files.is_in_out(stored.name)
        return stored.transposed() if is_in_out else stored

    def dtypes(self) -> dict[str, str]:
        """Of every tensor, by its name in the table."""
        parts = [part for parameter in self._table.values() for part in parameter.parts]
        stored = [part for parts in self._stored.values() for part in parts]
        return {part.name: self._files.dtype(one.name) for part, one in zip(parts, stored, strict=True)}

    def read(self, name: str) -> Array:
        """This rank's part of a parameter, as it is in memory."""
        return self._table[name].join([self._read(part) for part in self._stored[name]])

    def tensor(self, name: str) -> Array:
        """A tensor by its name in the table, this rank's part: [out_features, in_features] if it is linear."""
        parts = {part.name: (row, place) for row, one in self._table.items() for place, part in enumerate(one.parts)}
        row, place = parts[name]
        return self._read(self._stored[row][place])

    def _read(self, part: Part) -> Array:
        tensor = self._read_as_stored(part)
        if part.copy and self._files.has(part.copy):
            self._require_equal(part, tensor)
        return tensor.T if part.is_transposed else tensor

    def _read_as_stored(self, part: Part) -> Array:
        return self._files.read(part.name, part.own(self._shards.rank, self._shards.size))

    def _require_equal(self, part: Part, tensor: Array) -> None:
        """What is tied by config.json must be one: which of two would be meant?"""
        copy = replace(part, name=part.copy, is_embedding=False)
        if self._files.is_in_out(copy.name):
            copy = copy.transposed()
        again = self._read_as_stored(copy)
        if not np.array_equal(tensor, again.T if copy.is_transposed else again):
            raise ValueError(
                f"{self._files.index}: {copy.name} must equal {part.name}, got another tensor; tie_word_embeddings is "
                "true in config.json. Set it to false to keep both, or remove one from the weights"
            )


def other_weights(folder: Path) -> list[str]:
    """Weights in the folder that are not in safetensors, or not the model's."""
    return sorted({path.name for pattern in OTHER_WEIGHTS for path in folder.glob(pattern)})


def write_shards(
    folder: Path,
    prefix: str,
    table: Table,
    shards_of: Callable[[str], list[Array]],
    dtypes: Mapping[str, str],
    max_shard_bytes: int = MAX_SHARD_BYTES,
    writes: bool = True,
) -> dict[str, str]:
    """Write an array for each parameter under the Hugging Face names; see `safetensors_folder.write_shards`.

    Args:
        shards_of: a parameter's shards on all ranks that divide it, in order, else the one array; see `on_writer`.
        dtypes: of every tensor, in safetensors' words.
        writes: False only asks for all shards in the same order, for ranks that give their own to the one that writes.
    """
    sizes = {name: count * stored_dtypes.NUMPY[dtypes[name]].itemsize for name, count in elements(table).items()}

    def values(names: list[str]) -> dict[str, Array]:
        return tensors(table, names, shards_of, dtypes)

    if not writes:
        for names in safetensors_folder.divide(sizes, max_shard_bytes):
            for parameter in _owners(table, names):
                shards_of(parameter)
        return {}
    return safetensors_folder.write_shards(folder, prefix, sizes, values, max_shard_bytes)


def tensors(
    table: Table, names: list[str], shards_of: Callable[[str], list[Array]], dtypes: Mapping[str, str]
) -> dict[str, Array]:
    """As they are on disk; the other arguments are those of `write_shards`."""
    found: dict[str, Array] = {}
    for parameter in _owners(table, names):
        found |= table[parameter].merge(shards_of(parameter))
    return {name: stored_dtypes.rounded(found[name], dtypes[name]) for name in names}


def _owners(table: Table, names: list[str]) -> list[str]:
    """The parameters that the tensors are parts of."""
    owners = {part.name: name for name, parameter in table.items() for part in parameter.parts}
    return list(dict.fromkeys(owners[name] for name in names))


def on_writer(model: Any, own: Callable[[str], list[Array]], name: str) -> list[Array]:
    """A parameter's shards, or those of a moment, on the rank that writes, from the stage that has it.

    All ranks that share the model call this alike.

    Args:
        own: the shards of a parameter of this rank's stage, on its first rank; its other ranks call it too.
    """
    count = model.config.num_hidden_layers
    stage = model.pipeline.stage_of(layer_of(name, count), count)
    shards = own(name) if stage == model.pipeline.stage else []
    return model.pipeline.to_first(shards, stage) if model.shards.rank == 0 else []


def save(
    model: Any, folder: str | Path, max_shard_bytes: int = MAX_SHARD_BYTES, dtypes: Mapping[str, str] | None = None
) -> None:
    """Write `config.json` and the weights. What was there stays readable until the new index is in place.

    Then the weights that it replaces are removed, in whatever format they are: nothing is left that another program
    could take for the model.

    All ranks that share the model call this; the first writes.

    Args:
        dtypes: of every tensor, in safetensors' words; float32 if not given.

    Raises:
        OSError: the disk is full or the folder cannot be written; what was there is still whole.
    """
    folder, writes = Path(folder), model.writes
    if writes:
        folder.mkdir(parents=True, exist_ok=True)
    parameters = dict(model.named_parameters())
    sizes = elements(model.table)
    dtypes = dtypes or dict.fromkeys(sizes, "F32")

    def own(name: str) -> list[Array]:
        value = model.sharding.value_at_first(parameters[name])
        return [] if value is None else model.shards.all_shards(parameters[name], value)

    shards_of = partial(on_writer, model, own)
    weight_map = write_shards(folder, "model", model.table, shards_of, dtypes, max_shard_bytes, writes)
    if not writes:
        return
    config = {**model.config.to_dict(), "torch_dtype": stored_dtypes.prevailing(sizes, dtypes)}
    atomic.write_file(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())
    safetensors_folder.write_index(folder, "model", weight_map)
    for name in other_weights(folder):
        (folder / name).unlink(missing_ok=True)

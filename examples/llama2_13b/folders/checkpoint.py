"""The model's weights in a Hugging Face folder, and whatever else has the parameters' shapes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from examples.llama2_13b.folders import safetensors_folder, stored_dtypes
from examples.llama2_13b.folders.layout import Array, Parameter, Part, Table, elements, layer_of
from examples.llama2_13b.folders.model_folder import WithCodes, weights_of
from examples.llama2_13b.folders.safetensors_layout import Layout, Stored
from examples.llama2_13b.folders.safetensors_writer import Files, Piece
from examples.llama2_13b.io import atomic
from examples.llama2_13b.io.remarks import say
from examples.llama2_13b.parallel.tensor_parallel import ALONE, TensorParallel
from examples.llama2_13b.parallel.writers import Writers
from fusionkit.quantized_weight import QuantizedWeight

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
        folder: with safetensors of that prefix, or a GGUF file.
        table: of the parameters.
        prefix: "model", or another set of tensors with its names and shapes.
        shards: whose part of each parameter is read; no more of it is held.

    Raises:
        FileNotFoundError, ValueError: see `model_folder.weights_of`.
    """

    def __init__(self, folder: str | Path, table: Table, prefix: str = "model", shards: TensorParallel = ALONE) -> None:
        self._shards = shards
        self._files = weights_of(folder, prefix)
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
        return self._read(self._stored_by_name(name))

    def quantized(self, name: str) -> QuantizedWeight | None:
        """The whole of such a tensor as the source's own codes, [in_features, out_features]; None if it has none."""
        files = self._files
        return files.quantized(self._stored_by_name(name).name) if isinstance(files, WithCodes) else None

    def _stored_by_name(self, name: str) -> Part:
        parts = {part.name: (row, place) for row, one in self._table.items() for place, part in enumerate(one.parts)}
        row, place = parts[name]
        return self._stored[row][place]

    def _read(self, part: Part) -> Array:
        tensor = self._read_as_stored(part)
        if part.copy and self._files.has(part.copy):
            self._require_equal(part, part.copy, tensor)
        return tensor.T if part.is_transposed else tensor

    def _read_as_stored(self, part: Part) -> Array:
        return self._files.read(part.name, part.own(self._shards.rank, self._shards.size))

    def _require_equal(self, part: Part, name: str, tensor: Array) -> None:
        """What is tied by config.json must be one: which of two would be meant?"""
        copy = replace(part, name=name, is_embedding=False)
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


def files(
    folder: Path,
    prefix: str,
    table: Table,
    dtypes: Mapping[str, str],
    writers: Writers,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Files:
    """New files for the tensors of a table, which nobody reads before `safetensors_folder.write_index`.

    Args:
        dtypes: of every tensor, in safetensors' words.
    """
    tensors = _stored(table, dtypes)
    shards = safetensors_folder.divide({name: one.num_bytes for name, one in tensors.items()}, max_shard_bytes)
    generation = safetensors_folder.free_generation(folder, prefix, len(shards)) if writers.is_first else 0
    generation = int(writers.gather([generation]).max())
    names = safetensors_folder.file_names(prefix, len(shards), generation)
    return Files(folder, names, [Layout({name: tensors[name] for name in shard}) for shard in shards], writers)


def one_file(folder: Path, name: str, table: Table, dtypes: Mapping[str, str], writers: Writers) -> Files:
    """As `files`, all tensors in one, in the place of what a killed run left there."""
    if writers.is_first:
        (folder / name).unlink(missing_ok=True)
    return Files(folder, [name], [Layout(_stored(table, dtypes))], writers)


def _stored(table: Table, dtypes: Mapping[str, str]) -> dict[str, Stored]:
    parts = [part for parameter in table.values() for part in parameter.parts]
    return {part.name: Stored(dtypes[part.name], part.shape) for part in parts}


def pieces(model: Any, table: Table, value_of: Callable[[str], Any], dtypes: Mapping[str, str]) -> Iterator[Piece]:
    """What this rank writes of the tensors of a table, one at a time.

    Of what tensor-parallel ranks all have the first writes it; of what two stages have, one.

    Args:
        value_of: a parameter's value, or a moment's; None where another rank has it.
    """
    shards, count = model.shards, model.config.num_hidden_layers
    for name, parameter in table.items():
        here = model.pipeline.stage_of(layer_of(name, count), count) == model.pipeline.stage
        value = value_of(name) if here else None
        if value is None:
            continue
        own = parameter.split(np.asarray(value), shards.rank, shards.size)
        for part, array in zip(parameter.parts, own, strict=True):
            if shards.rank == 0 or part.axis is not None:
                rounded = stored_dtypes.rounded(array, dtypes[part.name])
                yield Piece(part.name, rounded, part.own(shards.rank, shards.size))


def reached(
    model: Any, table: Table, value_of: Callable[[str], Any], dtypes: Mapping[str, str], writers: Writers
) -> dict[str, str]:
    """The same dtypes, float32 for each tensor that has values which its own does not reach on some rank."""
    if not set(dtypes.values()) & {"F16", "BF16"}:
        return dict(dtypes)
    names = list(elements(table))
    kept = {piece.tensor for piece in pieces(model, table, value_of, dtypes) if piece.value.dtype == np.float32}
    anywhere = np.logical_or.reduce(writers.gather([name in kept for name in names]), axis=0)
    return {name: "F32" if beyond else dtypes[name] for name, beyond in zip(names, anywhere, strict=True)}


def save(
    model: Any, folder: str | Path, max_shard_bytes: int = MAX_SHARD_BYTES, dtypes: Mapping[str, str] | None = None
) -> None:
    """Write `config.json` and the weights. What was there stays readable until the new index is in place.

    Then the weights that it replaces are removed, in whatever format they are: nothing is left that another program
    could take for the model.

    All ranks that share the model call this, and each writes its own part.

    Args:
        dtypes: of every tensor, in safetensors' words; float32 if not given.

    Raises:
        OSError: the disk is full or the folder cannot be written; what was there is still whole.
    """
    folder, writers = Path(folder), model.writers
    if writers.is_first:
        folder.mkdir(parents=True, exist_ok=True)
    parameters = model.named_parameters()
    value_of = {name: parameter for name, parameter in parameters if model.sharding.writes(parameter)}.get
    dtypes = reached(model, model.saved, value_of, dtypes or dict.fromkeys(elements(model.saved), "F32"), writers)
    new = model.new_files(folder, dtypes, writers, max_shard_bytes)
    try:
        writers.together(partial(new.write, pieces(model, model.saved, value_of, dtypes)), folder)
    except BaseException:
        new.discard()
        raise
    writers.together(partial(model.finish_folder, folder, new, dtypes) if writers.is_first else None, folder)


def finish(model: Any, folder: Path, new: Files, dtypes: Mapping[str, str]) -> None:
    """What the first does when all have written."""
    sizes = elements(model.table)
    config = {**model.config.to_dict(), "torch_dtype": stored_dtypes.prevailing(sizes, dtypes)}
    atomic.write_file(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())
    safetensors_folder.write_index(folder, "model", new.weight_map)
    for name in other_weights(folder):
        (folder / name).unlink(missing_ok=True)

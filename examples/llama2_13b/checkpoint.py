"""The model's weights in a Hugging Face folder, and whatever else has the parameters' shapes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from examples.llama2_13b import atomic, safetensors_folder
from examples.llama2_13b.config import LlamaConfig
from examples.llama2_13b.layout import Array, join, layout, merge
from examples.llama2_13b.tensor_parallel import ALONE, TensorParallel

MAX_SHARD_BYTES = safetensors_folder.MAX_SHARD_BYTES


class Reader:
    """One array for each parameter, checked against a configuration before any memory is taken for a model.

    Args:
        folder: with safetensors of that prefix.
        config: of the model.
        prefix: "model", or another set of tensors with its names and shapes.
        shards: whose part of each parameter is read; no more of it is held.

    Raises:
        FileNotFoundError, ValueError: see `safetensors_folder.Reader`.
    """

    def __init__(
        self, folder: str | Path, config: LlamaConfig, prefix: str = "model", shards: TensorParallel = ALONE
    ) -> None:
        self._layout, self._shards = layout(config), shards
        self._files = safetensors_folder.Reader(folder, prefix)
        shapes = {part.name: part.shape for parts in self._layout.values() for part in parts}
        # Older folders hold the rotary frequencies, which the configuration gives.
        self._files.check(shapes, ignored=lambda name: name.endswith("rotary_emb.inv_freq"))

    def read(self, parameter: str) -> Array:
        rank, size = self._shards.rank, self._shards.size
        return join(parameter, [self._files.read(part.name, part.axis, rank, size) for part in self._layout[parameter]])


def write_shards(
    folder: Path,
    prefix: str,
    config: LlamaConfig,
    shards_of: Callable[[str], list[Array]],
    max_shard_bytes: int = MAX_SHARD_BYTES,
    writes: bool = True,
) -> dict[str, str]:
    """Write an array for each parameter under the Hugging Face names; see `safetensors_folder.write_shards`.

    Args:
        shards_of: a parameter's shards on all ranks that divide it, in order, else the one array.
        writes: False only asks for all shards in the same order, for ranks that give their own to the one that writes.
    """
    owners = {part.name: (name, parts) for name, parts in layout(config).items() for part in parts}
    shapes = {part.name: part.shape for _, parts in owners.values() for part in parts}

    def values(names: list[str]) -> dict[str, Array]:
        tensors: dict[str, Array] = {}
        for parameter, parts in dict.fromkeys(owners[name] for name in names):
            tensors |= merge(parameter, shards_of(parameter), parts)
        return {name: tensors[name] for name in names}

    if not writes:
        for names in safetensors_folder.divide(shapes, max_shard_bytes):
            values(names)
        return {}
    return safetensors_folder.write_shards(folder, prefix, shapes, values, max_shard_bytes)


def save(model: Any, folder: str | Path, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Write `config.json` and the weights in float32. What was there stays readable until the new index is in place.

    All ranks that share the model call this; the first writes.

    Raises:
        OSError: the disk is full or the folder cannot be written; what was there is still whole.
    """
    folder, writes = Path(folder), model.shards.rank == 0
    if writes:
        folder.mkdir(parents=True, exist_ok=True)
    parameters = dict(model.named_parameters())

    def shards_of(name: str) -> list[Array]:
        return model.shards.all_shards(parameters[name], parameters[name])

    weight_map = write_shards(folder, "model", model.config, shards_of, max_shard_bytes, writes)
    if not writes:
        return
    config = json.dumps(model.config.to_dict(), indent=2) + "\n"
    atomic.write_file(folder / "config.json", config.encode())
    safetensors_folder.write_index(folder, "model", weight_map)

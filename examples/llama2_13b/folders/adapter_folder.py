"""An adapter's tensors: their rows beside those of the model, and the folder that PEFT writes and reads."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

from examples.llama2_13b.folders import checkpoint
from examples.llama2_13b.folders.adapter_config import CONFIG, AdapterConfig
from examples.llama2_13b.folders.layout import Parameter, Part, Table
from examples.llama2_13b.io import atomic
from examples.llama2_13b.parallel.tensor_parallel import ALONE, TensorParallel

PREFIX = "adapter_model"
UNFINISHED = f".{PREFIX}.safetensors.saving"
FACTORS = ("lora_A", "lora_B")
PEFT_NAME = "base_model.model."  # before the name of the module that an adapter is for


def adapter_rows(table: Table, adapter: AdapterConfig) -> Table:
    """The rows of an adapter, beside those of the model: A and B for each target of each linear parameter.

    A takes its input where the target does, and B gives its output there: they are divided between the ranks likewise.
    """
    rows: Table = {}
    for name, parameter in table.items():
        for part in targeted(parameter, adapter):
            for factor, tensor in zip(FACTORS, _factors(part, adapter.rank), strict=True):
                rows[factor_name(name, part, factor)] = replace(parameter, parts=(tensor,), held_bytes=None)
    return rows


def targeted(parameter: Parameter, adapter: AdapterConfig) -> list[Part]:
    return [part for part in parameter.parts if module_of(part) in adapter.targets]


def module_of(part: Part) -> str:
    """Such as q_proj."""
    return part.name.removesuffix(".weight").rpartition(".")[2]


def factor_name(name: str, part: Part, factor: str) -> str:
    """Of the model's parameter, such as layers.0.self_attn.qkv_proj.lora.q_proj.lora_A."""
    return f"{name.removesuffix('.weight')}.lora.{module_of(part)}.{factor}"


def tensor_name(name: str, factor: str) -> str:
    """On disk, for the target of that name on disk."""
    return f"{PEFT_NAME}{name.removesuffix('.weight')}.{factor}.weight"


def _factors(part: Part, rank: int) -> tuple[Part, Part]:
    rows, columns = part.shape
    a = Part(tensor_name(part.name, "lora_A"), (rank, columns), 1 if part.axis == 1 else None)
    b = Part(tensor_name(part.name, "lora_B"), (rows, rank), 0 if part.axis == 0 else None)
    return a, b


def reader(folder: str | Path, rows: Table, shards: TensorParallel = ALONE) -> checkpoint.Reader:
    """Of the adapter's tensors, checked against its rows.

    Raises:
        FileNotFoundError, ValueError: there is none, or it is for another model.
    """
    path = Path(folder) / f"{PREFIX}.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"{path}: not found; peft's save_pretrained(folder, safe_serialization=True) writes it")
    try:
        return checkpoint.Reader(folder, rows, PREFIX, shards)
    except ValueError as error:
        rule = "the adapter must be for the model that --model_name_or_path names, and as its own file says"
        raise ValueError(f"{error}; {rule}, see base_model_name_or_path and r in {path.with_name(CONFIG)}") from None


def finish(folder: Path, adapter: AdapterConfig, base: str) -> None:
    """Give the new tensors their name; an older adapter stays whole until each of the two files takes its place.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    os.replace(folder / UNFINISHED, folder / f"{PREFIX}.safetensors")
    content = json.dumps(adapter.to_dict(base), indent=2) + "\n"
    atomic.write_file(folder / CONFIG, content.encode())

"""What a model is read from: a Hugging Face folder, or a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from examples.llama2_13b.folders import gguf_config, pickles, safetensors_folder
from examples.llama2_13b.folders.config import LlamaConfig, read_fields
from examples.llama2_13b.folders.gguf_file import GGUFFile, gguf_of, opened


def fields_of(source: str | Path) -> dict[str, Any]:
    """What config.json says, unchecked, or the GGUF file in its place.

    Raises:
        FileNotFoundError, ValueError: neither is there, or the file is not covered.
    """
    if file := gguf_of(source):
        return gguf_config.fields(opened(file))
    if Path(source).is_file():
        pickles.refuse(Path(source))
        raise ValueError(f"{source}: must be a model folder or a .gguf file, got another file")
    return read_fields(Path(source) / "config.json")


def config_of(source: str | Path) -> LlamaConfig:
    """The configuration of a model folder or a GGUF file.

    Raises:
        FileNotFoundError, ValueError: as `fields_of` and `LlamaConfig.from_dict`.
    """
    return LlamaConfig.from_dict(fields_of(source), str(gguf_of(source) or Path(source) / "config.json"))


def weights_of(source: str | Path, prefix: str = "model") -> safetensors_folder.Reader | GGUFFile:
    """The tensors of a model, or of another set in its folder.

    Raises:
        FileNotFoundError, ValueError: they are not there, or not as they should be; the file is named.
    """
    file = gguf_of(source) if prefix == "model" else None
    return opened(file) if file else safetensors_folder.Reader(source, prefix)

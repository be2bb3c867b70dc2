"""What a model is read from: a Hugging Face folder, or a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from examples.llama2_13b.folders import gguf_config, pickles, safetensors_folder
from examples.llama2_13b.folders.config import LlamaConfig, read_fields
from examples.llama2_13b.folders.gguf_file import GGUFFile, gguf_of, opened
from examples.llama2_13b.folders.quantized_folder import QuantizedFolder, quantization_of

WithCodes = GGUFFile | QuantizedFolder  # they may have a matrix in 8 or 4 bits


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


def weights_of(source: str | Path, prefix: str = "model") -> safetensors_folder.Reader | WithCodes:
    """The tensors of a model, or of another set in its folder.

    Raises:
        FileNotFoundError, ValueError: they are not there, or not as they should be; the file is named.
    """
    if prefix != "model":
        return safetensors_folder.Reader(source, prefix)
    if file := gguf_of(source):
        return opened(file)
    quantization = quantization_of(Path(source))
    return QuantizedFolder(Path(source), quantization) if quantization else safetensors_folder.Reader(source, prefix)


def is_quantized(source: str | Path) -> bool:
    """Whether it is a folder of codes. A GGUF file may have some, and is read in floats unless they are asked for."""
    return gguf_of(source) is None and quantization_of(Path(source)) is not None

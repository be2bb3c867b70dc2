"""A model folder or a GGUF file to a model folder with its matrices in 8 or 4 bits.

    python -m examples.llama2_13b.quantize --model_name_or_path output/sft --output_path output/int4 --weight_dtype int4

Matrices that are in 8 or 4 bits already are taken as they are, and rounded by nobody again.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # python path/to/this/file, from any folder
    import repository  # noqa: F401

from tqdm import tqdm

from examples.llama2_13b.data.chat_template import TEMPLATE
from examples.llama2_13b.data.tokenizer_folder import TokenizerFolder
from examples.llama2_13b.folders import quantized_folder
from examples.llama2_13b.folders.layout import layout
from examples.llama2_13b.folders.model_folder import config_of
from examples.llama2_13b.folders.quantization import GROUP_SIZE_HELP, SYMMETRIC_HELP, Quantization, asked
from examples.llama2_13b.folders.quantized_reader import QuantizedReader
from examples.llama2_13b.io import atomic, flags
from examples.llama2_13b.io.flags import flag
from examples.llama2_13b.io.remarks import Screen, say
from examples.llama2_13b.io.reservation import LOCK, reserved

PROGRAM = "examples.llama2_13b.quantize"


@dataclass(frozen=True)
class QuantizeFlags:
    model_name_or_path: str = flag("folder of the model, or a GGUF file")
    output_path: str = flag("the new model folder")
    weight_dtype: str = flag("of matrices that are in floats: int8 | int4; embedding and head are int8 anyway")
    group_size: int = flag(GROUP_SIZE_HELP, 32)
    symmetric: bool = flag(SYMMETRIC_HELP, False)


def quantize(flags: QuantizeFlags) -> int:
    """Write the folder whole or not at all; one file of weights is held at a time.

    Raises:
        ValueError, OSError: something in flags or model is wrong, or the disk is full.
    """
    rounding = asked("quantize", flags.weight_dtype, flags.group_size, flags.symmetric)
    output = Path(flags.output_path)
    with reserved(output, "quantize: --output_path"):
        if {path.name for path in output.iterdir()} - {LOCK}:
            raise ValueError(f"quantize: --output_path must be empty or not there, got {output}. Name another folder")
        with atomic.new_folder(output) as folder:
            _write(Path(flags.model_name_or_path), folder, rounding)
    size = sum(path.stat().st_size for path in output.glob("*.safetensors"))
    print(f"{output}: {size / 1e6:.1f} MB of weights, with config and tokenizer")
    return 0


def _write(source: Path, folder: Path, rounding: Quantization | None) -> None:
    config = config_of(source)
    table = layout(config)
    files = TokenizerFolder(source).files
    if (source / TEMPLATE).is_file():
        files = {**files, TEMPLATE: (source / TEMPLATE).read_bytes()}
    reader = QuantizedReader(source, table, rounding)
    count = sum(len(parameter.parts) for parameter in table.values())
    with tqdm(total=count, unit="tensor", file=Screen(sys.stderr), mininterval=0.5) as progress:

        def value_of(name: str) -> quantized_folder.Value:
            progress.update()
            return reader.tensor(name)

        quantized_folder.write(folder, config, value_of)
    say(reader.summary, sys.stderr)
    for name, content in files.items():
        (folder / name).write_bytes(content)


if __name__ == "__main__":
    flags.main(QuantizeFlags, quantize, PROGRAM)

"""A model folder to a folder that `predict` runs: static program with device-neutral ops, config and tokenizer.

python -m examples.llama2_13b.export --model_name_or_path output/sft --output_path output/exported --dtype bfloat16
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # python path/to/this/file, from any folder
    import repository  # noqa: F401

import fusionkit as fk
from examples.llama2_13b.data.chat_template import TEMPLATE
from examples.llama2_13b.data.tokenizer import Tokenizer
from examples.llama2_13b.folders.model_folder import config_of, is_quantized
from examples.llama2_13b.folders.quantization import (
    ACTIVATIONS_HELP,
    GROUP_SIZE_HELP,
    SYMMETRIC_HELP,
    Quantization,
    asked,
)
from examples.llama2_13b.generate.decode_step import CACHE_DTYPES, DecodeStep, narrow_matrices
from examples.llama2_13b.generate.generation_settings import GenerationSettings
from examples.llama2_13b.io import atomic, flags
from examples.llama2_13b.io.flags import flag
from examples.llama2_13b.io.remarks import say
from examples.llama2_13b.io.reservation import LOCK, reserved
from examples.llama2_13b.model.llama import DTYPES, Llama
from examples.llama2_13b.model.quantized_llama import QuantizedLlama
from fusionkit import passes
from fusionkit.dtypes import ROUNDED

PROGRAM = "examples.llama2_13b.export"
FILES = ("model.json", "model.pdiparams")
CACHE_DTYPE_HELP = f"of keys and values in the cache: {' | '.join(CACHE_DTYPES)}, on cpu; dtype if not given"


@dataclass(frozen=True)
class ExportFlags:
    model_name_or_path: str = flag("folder of the model, or a GGUF file")
    output_path: str = flag("the folder to write; an older export there is replaced as a whole")
    dtype: str = flag(f"of arithmetic, matrices and cache: {' | '.join(DTYPES)}", "float32")
    batch_invariant: bool = flag("an answer's bits do not depend on the batch; False is faster and lets them", True)
    weight_dtype: str | None = flag(
        "of matrices: int8 | int4, those stored so as they are; dtype if not given, and codes of a folder stay", None
    )
    group_size: int = flag(GROUP_SIZE_HELP, 32)
    symmetric: bool = flag(SYMMETRIC_HELP, False)
    activations: str | None = flag(ACTIVATIONS_HELP, None)
    cache_dtype: str | None = flag(CACHE_DTYPE_HELP, None)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"export: --dtype must be {' or '.join(DTYPES)}, got {self.dtype!r}")
        if self.activations not in ROUNDED:
            raise ValueError(f"export: --activations must be int8 or left out, got {self.activations!r}")
        require_cache_dtype("export", self.cache_dtype)
        self.rounding()

    def rounding(self) -> Quantization | None:
        return asked("export", self.weight_dtype, self.group_size, self.symmetric)


def export(flags: ExportFlags) -> int:
    """Write the folder whole or not at all.

    Raises:
        ValueError, OSError: something in flags or model folder is wrong, or the disk is full.
    """
    output = Path(flags.output_path)
    with reserved(output, "export: --output_path"):
        require_free(output)
        _write(flags, Path(flags.model_name_or_path), output)
    size = sum((output / name).stat().st_size for name in FILES)
    print(f"{output}: {', '.join(FILES)}, {size / 1e6:.1f} MB in {flags.dtype}, with config and tokenizer")
    return 0


def _write(flags: ExportFlags, source: Path, output: Path) -> None:
    tokenizer = Tokenizer.from_pretrained(source)
    settings = GenerationSettings.from_pretrained(source, config_of(source))
    model = _model(flags, source)
    narrow_matrices(model)
    with atomic.new_folder(output) as folder:
        step = DecodeStep(model, flags.cache_dtype)
        with fk.use_batch_invariant(flags.batch_invariant):
            passes.export(step, folder / "model", step.input_spec())
        config = {**model.config.to_dict(), "torch_dtype": flags.dtype}
        if flags.cache_dtype is not None:
            config["cache_dtype"] = flags.cache_dtype
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        tokenizer.save(folder)
        settings.save(folder)
        if (source / TEMPLATE).exists():
            (folder / TEMPLATE).write_bytes((source / TEMPLATE).read_bytes())
    if settings.without_effect:
        print(settings.without_effect)


def _model(flags: ExportFlags, source: Path) -> Llama:
    """In 8 or 4 bits if that is asked for, or if the folder is."""
    rounding = flags.rounding()
    if rounding is None and not is_quantized(source):
        if flags.activations is not None:
            raise ValueError(
                f"export: --activations must be left out, got {flags.activations}; the matrices are in floats."
                " Give --weight_dtype int8 or int4 too"
            )
        return Llama.from_pretrained(source, flags.dtype)
    model = QuantizedLlama.load(source, flags.dtype, rounding, activations=flags.activations)
    say(model.summary, sys.stderr)
    return model


def require_cache_dtype(command: str, dtype: str | None) -> None:
    if dtype not in (None, *CACHE_DTYPES):
        rule = f"--cache_dtype must be {' or '.join(CACHE_DTYPES)}, or left out for that of --dtype"
        raise ValueError(f"{command}: {rule}, got {dtype!r}")


def require_free(output: Path) -> None:
    """Replacing a folder removes what it holds, so it must be an export or empty."""
    held = {path.name for path in output.iterdir()} - {LOCK}
    if held and not held >= set(FILES):
        raise ValueError(f"export: --output_path must be empty or an older export, got {output}. Name another folder")


if __name__ == "__main__":
    flags.main(ExportFlags, export, PROGRAM)

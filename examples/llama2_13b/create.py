"""A new model folder: random weights, and a tokenizer trained on the data.

    python -m examples.llama2_13b.create --config examples/llama2_13b/configs/demo.json \\
        --dataset_name_or_path examples/llama2_13b/texts --output_dir output/new
"""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # python path/to/this/file, from any folder
    import repository  # noqa: F401

import paddle

from examples.llama2_13b.data.documents import files_of, read_documents
from examples.llama2_13b.data.samples import read_examples, split_files
from examples.llama2_13b.data.tokenizer import Tokenizer
from examples.llama2_13b.folders import random_folder
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.folders.quantization import GROUP_SIZE_HELP, SYMMETRIC_HELP, asked
from examples.llama2_13b.io import atomic, flags
from examples.llama2_13b.io.flags import flag
from examples.llama2_13b.io.reservation import reserved
from examples.llama2_13b.model import Llama

PROGRAM = "examples.llama2_13b.create"


@dataclass(frozen=True)
class CreateFlags:
    config: str = flag("config.json of the model, see configs/")
    dataset_name_or_path: str = flag("the tokenizer's text: a folder with train.json, or what tokenize_texts reads")
    output_dir: str = flag("the new model folder")
    seed: int = flag("of the weights", 42)
    overwrite_output_dir: bool = flag("replace the model that output_dir holds", False)
    weights: bool = flag("false for config.json and tokenizer alone, which a rehearsal takes", True)
    json_key: str = flag("field of a JSON line that holds its text, without train.json", "text")
    weight_dtype: str | None = flag("of the matrices: int8 | int4; floats if not given", None)
    group_size: int = flag(GROUP_SIZE_HELP, 32)
    symmetric: bool = flag(SYMMETRIC_HELP, False)


def create(flags: CreateFlags) -> int:
    """Write the folder.

    Raises:
        ValueError, OSError: something in flags, config or data is wrong; nothing was written.
    """
    with reserved(Path(flags.output_dir), "create: --output_dir"):
        return _create(flags)


def _create(flags: CreateFlags) -> int:
    if not flags.overwrite_output_dir and (Path(flags.output_dir) / "config.json").exists():
        raise ValueError(
            f"create: --output_dir must hold no model yet, got {flags.output_dir}. Name another folder, or give the "
            "model up with --overwrite_output_dir"
        )
    config = LlamaConfig.from_json(flags.config)
    rounding = asked("create", flags.weight_dtype, flags.group_size, flags.symmetric)
    tokenizer = Tokenizer.train(_texts(Path(flags.dataset_name_or_path), flags.json_key), config)
    if flags.weights and rounding:
        random_folder.write(Path(flags.output_dir), config, rounding, flags.seed)
    elif flags.weights:
        paddle.seed(flags.seed)
        Llama(config).save_pretrained(flags.output_dir)
    else:
        _write_config(config, Path(flags.output_dir))
    tokenizer.save(Path(flags.output_dir))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # in kB on Linux
    size = f"{config.num_hidden_layers} layers, {tokenizer.vocab_size} tokens"
    print(f"{flags.output_dir}: {size}; {memory:.1f} GB of memory at most")
    return 0


def _write_config(config: LlamaConfig, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_file(folder / "config.json", (json.dumps(config.to_dict(), indent=2) + "\n").encode())


def _texts(dataset: Path, json_key: str) -> Iterator[str]:
    """Sources and targets of train.json, or else documents."""
    if dataset.is_dir() and (files := split_files(dataset, "train")):
        for example in read_examples(files):
            for turn in example.turns:
                yield from turn
        return
    for file in files_of(dataset):
        for _, text in read_documents(file, json_key):
            yield text


if __name__ == "__main__":
    flags.main(CreateFlags, create, PROGRAM)

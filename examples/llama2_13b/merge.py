"""An adapter into its model: W becomes W + alpha / rank * B @ A, and the folder one that needs no adapter.

python -m examples.llama2_13b.merge --model_name_or_path output/new --lora_path output/lora --output_path output/merged
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # python path/to/this/file, from any folder
    import repository  # noqa: F401

from tqdm import tqdm

from examples.llama2_13b.data.chat_template import TEMPLATE
from examples.llama2_13b.data.tokenizer_folder import FILES, GENERATION, TokenizerFolder
from examples.llama2_13b.folders import adapter_folder, checkpoint, safetensors_folder
from examples.llama2_13b.folders.adapter_config import AdapterConfig
from examples.llama2_13b.folders.adapter_folder import FACTORS, adapter_rows, targeted, tensor_name
from examples.llama2_13b.folders.gguf_file import gguf_of
from examples.llama2_13b.folders.layout import Array, elements, layout
from examples.llama2_13b.folders.model_folder import config_of, fields_of
from examples.llama2_13b.folders.quantization import FIELD as QUANTIZATION
from examples.llama2_13b.folders.stored_dtypes import NUMPY, rounded
from examples.llama2_13b.io import atomic, flags
from examples.llama2_13b.io.flags import flag
from examples.llama2_13b.io.remarks import Screen
from examples.llama2_13b.io.reservation import LOCK, reserved

PROGRAM = "examples.llama2_13b.merge"


@dataclass(frozen=True)
class MergeFlags:
    model_name_or_path: str = flag("folder of the model that the adapter was trained on")
    lora_path: str = flag("folder of the adapter, from lora or from PEFT")
    output_path: str = flag("the new model folder; its tensors have the dtypes of the model's")


def merge(flags: MergeFlags) -> int:
    """Write the folder whole or not at all; one file of weights is held at a time.

    Raises:
        ValueError, OSError: the adapter is not for this model, a folder is not what it should be, or the disk is full.
    """
    output = Path(flags.output_path)
    with reserved(output, "merge: --output_path"):
        if {path.name for path in output.iterdir()} - {LOCK}:
            raise ValueError(f"merge: --output_path must be empty or not there, got {output}. Name another folder")
        merged = Merged(Path(flags.model_name_or_path), Path(flags.lora_path))
        with atomic.new_folder(output) as folder:
            merged.write(folder)
    print(f"{output}: {flags.model_name_or_path} with {flags.lora_path} in {len(merged.targets)} of its matrices")
    return 0


class Merged:
    """The tensors of a model with those of an adapter added, read when asked for.

    Args:
        base: the model's folder.
        source: the adapter's.
    """

    def __init__(self, base: Path, source: Path) -> None:
        self._base, self._source = base, source
        self._table = layout(config_of(base))
        self._adapter = AdapterConfig.from_pretrained(source)
        self._factors = adapter_folder.reader(source, adapter_rows(self._table, self._adapter))
        self._weights = checkpoint.Reader(base, self._table)
        self._dtypes = self._weights.dtypes()
        rows = self._table.values()
        self.targets = {part.name for row in rows for part in targeted(row, self._adapter)}

    def write(self, folder: Path) -> None:
        sizes = {name: count * NUMPY[self._dtypes[name]].itemsize for name, count in elements(self._table).items()}
        with tqdm(total=len(sizes), unit="tensor", file=Screen(sys.stderr), mininterval=0.5) as progress:

            def values(names: list[str]) -> dict[str, Array]:
                tensors = {}
                for name in names:
                    tensors[name] = self._stored(name)
                    progress.update()
                return tensors

            weight_map = safetensors_folder.write_shards(folder, "model", sizes, values)
        safetensors_folder.write_index(folder, "model", weight_map)
        fields = fields_of(self._base)
        if gguf_of(self._base) or fields.pop(QUANTIZATION, None):  # what is written is in floats
            content = json.dumps(fields, indent=2) + "\n"
            (folder / "config.json").write_text(content, encoding="utf-8")
        else:
            (folder / "config.json").write_bytes((self._base / "config.json").read_bytes())
        for name, text in self._text_files().items():
            (folder / name).write_bytes(text)

    def _text_files(self) -> dict[str, bytes]:
        """Tokenizer and chat template that the adapter was trained with: `lora` writes them beside it."""
        base, source = TokenizerFolder(self._base).files, self._source
        own = {name: (source / name).read_bytes() for name in (*FILES, TEMPLATE) if (source / name).is_file()}
        if "tokenizer.json" in own:
            return own if GENERATION not in base else {GENERATION: base[GENERATION], **own}
        template = self._base / TEMPLATE
        return {**base, TEMPLATE: template.read_bytes()} if template.is_file() else base

    def _stored(self, name: str) -> Array:
        return rounded(self.tensor(name), self._dtypes[name])

    def tensor(self, name: str) -> Array:
        """As on disk, in float32."""
        weight = self._weights.tensor(name)
        if name not in self.targets:
            return weight
        a, b = (self._factors.tensor(tensor_name(name, factor)) for factor in FACTORS)
        return weight + self._adapter.scale * (b @ a)


if __name__ == "__main__":
    flags.main(MergeFlags, merge, PROGRAM)

"""A GGUF file: what it says of the model, and its tensors by their names in a Hugging Face folder.

llama.cpp's format. Rows of q and k stand in another order there for the architecture llama: a head's pairs of rotary
elements side by side, where Hugging Face has all first elements before all second ones. They are read in Hugging
Face's order.

Source: the GGUF specification of ggml, docs/gguf.md, version 3; convert_hf_to_gguf.py of llama.cpp for the order.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionkit.gguf_blocks import from_gguf
from fusionkit.quantized_weight import QuantizedWeight

QUANTIZED = ("Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")
# What can be read, and the dtype that a saved model has instead: `read` makes floats of quantised tensors.
SAVED_AS = {"F32": "F32", "F16": "F16", "BF16": "BF16"} | dict.fromkeys(QUANTIZED, "F32")
ROPE_FACTORS = "rope_freqs.weight"
PERMUTED = ("self_attn.q_proj", "self_attn.k_proj")  # of the architecture llama
WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
OF_LAYER = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
MAX_ELEMENTS = 1 << 22  # that are turned into floats at a time, 16 MB


def gguf_of(source: str | Path) -> Path | None:
    """The GGUF file that a path means: itself, or the only one of a folder without safetensors; None if it has none.

    Raises:
        ValueError: the folder has several.
    """
    path = Path(source)
    if path.suffix == ".gguf":
        return path
    found = sorted(path.glob("*.gguf"))
    if not found or any(path.glob("model*.safetensors*")):
        return None
    if len(found) > 1:
        names = ", ".join(one.name for one in found)
        raise ValueError(f"{path}: must hold one GGUF file, got {names}. Name the file instead of its folder")
    return found[0]


def opened(path: Path) -> GGUFFile:
    """The file, parsed once for all who ask."""
    try:
        state = path.stat()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: not found") from None
    return _opened(path, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=2)
def _opened(path: Path, modified: int, size: int) -> GGUFFile:
    return GGUFFile(path)


class GGUFFile:
    """What `safetensors_folder.Reader` is for a folder.

    Raises:
        ValueError: it is truncated, not a GGUF file, or one part of several.
    """

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader, quants  # a third of a second, and most models are folders

        self.index, self._dequantize = path, quants.dequantize
        try:
            reader = GGUFReader(path)
        except Exception as error:  # the library checks little, so anything can be raised
            raise ValueError(f"{path}: truncated or not a GGUF file ({error}). Copy it again") from None
        self._fields = reader.fields
        if self.get("split.count", 1) > 1:
            advice = "llama.cpp's llama-gguf-split --merge joins them"
            raise ValueError(f"{path}: must be the whole model, got one file of {self.get('split.count')}. {advice}")
        self.architecture = self.get("general.architecture", "")
        self._tensors = {_name(tensor.name): tensor for tensor in reader.tensors}

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the file's metadata."""
        field = self._fields.get(key)
        if field is None:
            return default
        try:
            value = field.contents()
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.index}: {key} must be UTF-8: {error}") from None
        # The shortest decimal of a float32, as config.json would have it.
        return float(str(np.float32(value))) if field.types[0].name == "FLOAT32" else value

    @property
    def keys(self) -> list[str]:
        return list(self._fields)

    def has(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(int(size) for size in reversed(self._tensors[name].shape))

    def dtype(self, name: str) -> str:
        """That a saved model has, in safetensors' words."""
        return SAVED_AS[self._tensors[name].tensor_type.name]

    def is_in_out(self, name: str) -> bool:
        return False

    def unread(self) -> list[str]:
        return []

    def digest(self) -> str:
        """Of every tensor's name, shape, type and first row."""
        digest = hashlib.sha256()
        for name in sorted(self._tensors):
            tensor = self._tensors[name]
            digest.update(f"{name} {self.shape(name)} {tensor.tensor_type.name}".encode())
            digest.update(tensor.data[:1].tobytes())
        return digest.hexdigest()[:16]

    def check(self, shapes: Mapping[str, tuple[int, ...]], ignored: Callable[[str], bool] = lambda name: False) -> None:
        """Require exactly these tensors.

        Raises:
            ValueError: one is missing, unknown, of another shape or of a type that is not read. It is named.
        """
        found = {name for name in self._tensors if not ignored(name) and name != ROPE_FACTORS}
        for names, rule in ((set(shapes) - found, "be there"), (found - set(shapes), "not be there")):
            if names:
                raise ValueError(
                    f"{self.index}: the tensor {min(names)} must {rule}, as its metadata describes the model"
                )
        for name, shape in shapes.items():
            tensor_type = self._tensors[name].tensor_type.name
            if self.shape(name) != shape:
                raise ValueError(f"{self.index}: {name} must be {list(shape)}, got {list(self.shape(name))}")
            if tensor_type not in SAVED_AS:
                advice = "llama.cpp's llama-quantize --allow-requantize writes another type"
                raise ValueError(f"{self.index}: {name} must be {', '.join(SAVED_AS)}, got {tensor_type}. {advice}")

    def read(self, name: str, part: tuple[slice, ...]) -> NDArray[np.float32]:
        """A part of the tensor in float32, a slice for each axis; of rows whose order changes, whole heads."""
        tensor = self._tensors[name]
        rows = part[0]
        values = np.empty([one.stop - one.start for one in part], np.float32)
        step = max(1, MAX_ELEMENTS // max(1, int(tensor.n_elements) // self.shape(name)[0]))
        for begin in range(rows.start, rows.stop, step):
            stop = min(begin + step, rows.stop)
            place = (slice(None), *part[1:])
            values[begin - rows.start : stop - rows.start] = self._rows(tensor, begin, stop)[place]
        return self._in_order(name, values)

    def _rows(self, tensor: Any, begin: int, stop: int) -> NDArray[np.float32]:
        if len(tensor.shape) == 1:  # a norm or biases, whose rows are elements
            return np.asarray(self._dequantize(tensor.data, tensor.tensor_type)[begin:stop])
        return np.asarray(self._dequantize(tensor.data[begin:stop], tensor.tensor_type))

    def quantized(self, name: str) -> QuantizedWeight | None:
        """A matrix as its codes, [in_features, out_features], in the file's own rounding; None if it has no codes."""
        tensor = self._tensors[name]
        if len(tensor.shape) != 2 or tensor.tensor_type.name not in QUANTIZED:
            return None
        return from_gguf(self._in_order(name, np.asarray(tensor.data)), tensor.tensor_type.name)

    def _in_order(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        module = name.rpartition(".")[0].rpartition("layers.")[2].partition(".")[2]
        if self.architecture != "llama" or module not in PERMUTED:
            return values
        halves = values.reshape(-1, self.head_dim // 2, 2, *values.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)

    @property
    def head_dim(self) -> int:
        """Elements of a head."""
        heads = self.get(f"{self.architecture}.attention.head_count")
        given = self.get(f"{self.architecture}.attention.key_length")
        return int(given or self.get(f"{self.architecture}.embedding_length") // heads)

    def rope_factors(self) -> NDArray[np.float32] | None:
        """By which each rotary frequency is divided, [head_dim / 2]; None if the file has none."""
        if ROPE_FACTORS not in self._tensors:
            return None
        return self.read(ROPE_FACTORS, (slice(0, self.shape(ROPE_FACTORS)[0]),))


def _name(theirs: str) -> str:
    """Such as model.layers.0.mlp.up_proj.weight for blk.0.ffn_up.weight; unknown ones stay."""
    module, _, kind = theirs.rpartition(".")
    found = re.fullmatch(r"blk\.(\d+)\.(\w+)", module)
    if found and found[2] in OF_LAYER:
        return f"model.layers.{found[1]}.{OF_LAYER[found[2]]}.{kind}"
    return f"{WHOLE[module]}.{kind}" if module in WHOLE else theirs

"""A GGUF file's model with its matrices in another type, so that contestants meet where each reads the file exactly.

OpenVINO GenAI has integer zero points, where Q4_1 and Q4_K have minimums. llama.cpp has kernels of several rows for
Q4_0 and Q8_0, and none for Q4_1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

KINDS = ("Q8_0", "Q4_0")
SENSITIVE = ("token_embd.weight", "output.weight")  # Q8_0 in either, as llama.cpp's own files keep them finer
OF_THE_FILE = ("GGUF.", "general.architecture", "general.file_type")  # what a writer adds itself


def write(source: Path, path: Path, kind: str) -> None:
    """The file, whole or not at all, tensor by tensor: each of another type is turned into floats and rounded.

    Args:
        kind: of the matrices, but Q8_0 of embedding and head.
    """
    import gguf

    reader = gguf.GGUFReader(source)
    temporary = path.with_name(f".{path.name}.saving")
    writer = gguf.GGUFWriter(temporary, str(reader.fields["general.architecture"].contents()))
    try:
        _copy_metadata(reader, writer, kind)
        kinds = {tensor.name: _kind_of(tensor, kind) for tensor in reader.tensors}
        for tensor in reader.tensors:
            _announce(writer, tensor, kinds[tensor.name])
        for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_ti_data_to_file):
            step()
        for tensor in reader.tensors:
            writer.write_tensor_data(_rounded(tensor, kinds[tensor.name]))
        writer.close()
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _kind_of(tensor: Any, kind: str) -> Any:
    from gguf import GGMLQuantizationType as Type

    if len(tensor.shape) == 1:
        return Type.F32
    return Type.Q8_0 if tensor.name in SENSITIVE else Type[kind]


def _rounded(tensor: Any, kind: Any) -> Any:
    """Its bytes as they are, if it is of this type."""
    from gguf import quants

    if tensor.tensor_type == kind:
        return tensor.data
    return quants.quantize(quants.dequantize(tensor.data, tensor.tensor_type), kind)


def _announce(writer: Any, tensor: Any, kind: Any) -> None:
    from gguf import quants

    shape = tuple(int(size) for size in reversed(tensor.shape))
    if len(shape) == 1:
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), 4 * shape[0])
        return
    stored = quants.quant_shape_to_byte_shape(shape, kind)
    writer.add_tensor_info(tensor.name, stored, np.dtype(np.uint8), int(np.prod(stored)), kind)


def _copy_metadata(reader: Any, writer: Any, kind: str) -> None:
    import gguf

    for name, field in reader.fields.items():
        if not name.startswith(OF_THE_FILE):
            of_elements = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=of_elements)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])

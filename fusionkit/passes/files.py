"""The files of an exported program, and whether they are whole.

Paddle 3.3 writes without asking whether the disk took it, and computes with unset memory when `.pdiparams` is missing
or its end is cut off. So what is written is measured, and sizes and checksums are written down. Paddle writes no
`.pdiparams` for a layer without parameters.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM, PARAMETERS, SIZES = ".json", ".pdiparams", ".sizes"
PIECE = 1 << 24  # bytes that a thread reads at a time
# One thread checks 0.7 GB/s and four 1.2 (2 vCPUs of a Xeon with AMX, busy); loading alone took 1.3 s a GB there.
NUM_THREADS = 4


def with_suffix(path: str | Path, suffix: str) -> Path:
    return Path(f"{path}{suffix}")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Where to write the program instead. Its files take their places at `path` when the block ends well."""
    place = Path(path)
    temporary = place.parent / f".{place.name}.saving"
    shutil.rmtree(temporary, ignore_errors=True)  # left by a killed run
    temporary.mkdir()
    try:
        yield temporary / place.name
        for suffix in (PARAMETERS, PROGRAM, SIZES):
            written = with_suffix(temporary / place.name, suffix)
            if written.exists():
                os.replace(written, with_suffix(place, suffix))
            else:
                with_suffix(place, suffix).unlink(missing_ok=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def seal(path: Path, tensors: Sequence[Any]) -> None:
    """Write down size and checksum of each file that Paddle wrote, once all of it is on the disk.

    Args:
        tensors: the layer's parameters and buffers; those in the program decide what `.pdiparams` must measure.

    Raises:
        OSError: a file is not as long as it must be.
        RuntimeError: Paddle's files do not say which parameters the program has.
    """
    files = [with_suffix(path, PROGRAM)]
    try:
        program = json.loads(files[0].read_bytes())
    except ValueError as error:
        raise OSError(f"export: {files[0].name} must be whole JSON on the disk, got {error}; {_CURE}") from None
    needed = set(_parameters(program["program"]))
    stored = [tensor for tensor in tensors if tensor.name in needed]
    parameters = with_suffix(path, PARAMETERS)
    if len(stored) != len(needed) or parameters.exists() != bool(stored):
        raise RuntimeError(f"export: the parameters of {files[0].name} must be the layer's, got {sorted(needed)}")
    if stored:
        files.append(parameters)
        _require_written(parameters, parameters_size(stored))
    for file in files:
        _sync(file)
    sizes = {file.name: {"bytes": file.stat().st_size, "crc32": checksum(file)} for file in files}
    with_suffix(path, SIZES).write_text(json.dumps(sizes) + "\n", encoding="utf-8")


def _parameters(node: Any) -> Iterator[str]:
    """Names of the parameters that a written program reads. Paddle leaves out what no output depends on."""
    for region in node.get("regions", ()):
        for block in region["blocks"]:
            for op in block["ops"]:
                if op["#"] == "p":  # builtin.parameter, in Paddle 3.3's own short form; its name is the last attribute
                    yield op["A"][-1]
                yield from _parameters(op)


_CURE = "the disk is full or takes no larger file (FAT: 4 GiB; `ulimit -f`). What was there before is whole"


def _require_written(file: Path, size: int) -> None:
    if (got := file.stat().st_size) != size:
        raise OSError(f"export: {file.name} must be {size} bytes on the disk, got {got}; {_CURE}")


def parameters_size(tensors: Sequence[Any]) -> int:
    """Bytes of `.pdiparams`: for each tensor a header, a description with one number a dimension, and its elements.

    Source: Paddle 3.3, paddle/fluid/framework/lod_tensor.cc, SerializeToStream; framework.proto, VarType.TensorDesc.
    """
    header = 4 + 8 + 4 + 4  # version, levels of detail, version of the tensor, length of the description
    dtype = 2
    descriptions = [dtype + sum(1 + _varint_size(n) for n in tensor.shape) for tensor in tensors]
    elements: list[int] = [math.prod(tensor.shape) * tensor.element_size() for tensor in tensors]
    return len(tensors) * header + sum(descriptions) + sum(elements)


def _varint_size(number: int) -> int:
    return max(1, -(-number.bit_length() // 7))


def checksum(file: Path) -> str:
    """CRC-32 of the CRC-32s of the file's pieces, in hexadecimal. Threads share the pieces."""
    offsets = range(0, file.stat().st_size, PIECE)

    def of_piece(offset: int) -> bytes:
        with file.open("rb") as stream:
            stream.seek(offset)
            return zlib.crc32(stream.read(PIECE)).to_bytes(4, "little")

    with ThreadPoolExecutor(NUM_THREADS) as threads:
        return f"{zlib.crc32(b''.join(threads.map(of_piece, offsets))):08x}"


def _sync(file: Path) -> None:
    """Some disks refuse what they took before only now."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def read_whole(path: str | Path) -> tuple[Path, Path | None]:
    """The program's file and that of its parameters, if it has any, once they are what was written.

    Raises:
        FileNotFoundError: one is missing.
        ValueError: one has another size or other bytes, or the sizes cannot be read.
    """
    sizes = _sizes(with_suffix(path, SIZES))
    for name, (size, crc32) in sizes.items():
        file = Path(path).parent / name
        _require_there(file)
        if (got := file.stat().st_size) != size:
            rule = f"{size} bytes, got {got}; it is truncated or of another export"
            raise ValueError(f"{file}: must be {rule}. Export it again")
        if (found := checksum(file)) != crc32:
            rule = f"of checksum {crc32}, got {found}; it was damaged or is of another export"
            raise ValueError(f"{file}: must be {rule}. Export it again")
    parameters = with_suffix(path, PARAMETERS)
    return with_suffix(path, PROGRAM), parameters if parameters.name in sizes else None


def _sizes(file: Path) -> dict[str, tuple[int, str]]:
    """File -> (size, checksum)."""
    _require_there(file)
    try:
        sizes = json.loads(file.read_text(encoding="utf-8"))
        return {name: (int(entry["bytes"]), str(entry["crc32"])) for name, entry in sizes.items()}
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        rule = f"sizes and checksums of the program's files, got {error!r}"
        raise ValueError(f"{file}: must be {rule}. Export it again") from None


def _require_there(file: Path) -> None:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: not found; fusionkit.passes.export writes it. Export it again")

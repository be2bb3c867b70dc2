"""What becomes of a program on the host: weights are packed, and the host's passes put in larger ops."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusionkit.backend import Backend
from fusionkit.passes import files, packing, parameters, written
from fusionkit.passes.packing import Packing
from fusionkit.passes.steps import LayersDiffer, Passes, names_left_out, rewritten


@dataclass
class Prepared:
    """What Paddle's predictor loads, and what it is given at each call besides the inputs.

    Args:
        program, parameters: files; no parameters: None.
        packs: bytes of packed weights, tensors in the order of the program's first inputs.
        log: a line for each pass.
    """

    program: Path
    parameters: Path | None
    packs: list[Any] = field(default_factory=list)
    log: list[str] = field(default_factory=list)


@contextmanager
def prepared(
    path: str | Path, owner: Backend, passes: Passes, without: Sequence[str] = (), num_layers: int | None = None
) -> Iterator[Prepared]:
    """The program at `path` after the passes, in a temporary folder that lives as long as the block.

    Args:
        owner: the backend that packs.
        passes: whose functions name Paddle's custom ops.
        without, num_layers: as `passes.load`'s.

    Raises:
        FileNotFoundError, ValueError: a file is missing, truncated or damaged; or no pass is called as `without` says.
        OSError: the folder for temporary files takes no more.
    """
    left_out = names_left_out([packing.NAME, *(step.name for step in passes.steps)], without)
    program, stored = files.read_whole(path)
    file = json.loads(program.read_bytes())
    written.complete(file)
    packed = Packing(file, stored, owner)
    if packing.NAME in left_out:
        log = [f"pass {packing.NAME}: left out"]
    else:
        packed.run()
        log = packed.log()
    log += _fused(file, passes, [name for name in left_out if name != packing.NAME], num_layers)
    with tempfile.TemporaryDirectory(prefix="fusionkit-") as folder:
        result = Prepared(Path(folder) / "prepared.json", stored, packed.packs, log)
        result.program.write_text(json.dumps(file), encoding="utf-8")
        if packed.packs:
            result.parameters = _write_parameters(Path(folder), packed)
        yield result


def _write_parameters(folder: Path, packed: Packing) -> Path | None:
    if not packed.kept:
        return None
    parameters.write(folder / "prepared.pdiparams", packed.kept)
    return folder / "prepared.pdiparams"


def _fused(file: dict[str, Any], passes: Passes, without: Sequence[str], num_layers: int | None) -> list[str]:
    """Rewrite the file. Every layer is fused or none: unfused ones are as right, so a difference is no error here."""
    if written.has_branches(file):
        return [f"pass {step.name}: 0 x {step.matched}; the program has branches" for step in passes.steps]
    stands = written.Written(file)
    try:
        result, log = rewritten(stands.program, passes, without, num_layers)
    except LayersDiffer as error:
        return [f"pass {step.name}: 0 x {step.matched}; {error.difference}" for step in passes.steps]
    if result.operations != stands.program.operations:
        stands.put(result, passes.functions)
    return log

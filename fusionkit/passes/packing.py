"""The pass of the host: every weight that a product reads is packed once, when the program is loaded.

A parameter becomes an input of the program, the bytes of its pack, which the loader hands over at each call. Paddle's
predictor never sees the weight, so memory holds it once.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fusionkit.backend import Backend
from fusionkit.frameworks.numpy import DTYPES
from fusionkit.packed_weight import pack_weight
from fusionkit.passes import files, parameters
from fusionkit.passes.parameters import Parameter
from fusionkit.policy import use_backend, use_batch_invariant
from fusionkit.quantized_arrays import QuantizedArrays

NAME = "pack_weights"
PACKED = "fusionkit_fused_linear_packed"
_FLOATS = ("fusionkit_fused_linear", "fusionkit_fused_linear_bias")
_CODES = "fusionkit_quantized_linear"
_PACKABLE = ("float32", "bfloat16")
_SIZES = ("in_features", "out_features")  # attributes of a packed product

Operation = dict[str, Any]  # as Paddle 3.3 writes it: "#" name, "I" inputs, "O" outputs, "A" attributes


@dataclass
class Packed:
    """What Paddle's predictor loads, and what it is given at each call besides the inputs.

    Args:
        program, parameters: files; no parameters: None.
        packs: bytes of packed weights, tensors in the order of the program's first inputs.
        log: a line for each kind of weight.
    """

    program: Path
    parameters: Path | None
    packs: list[Any] = field(default_factory=list)
    log: list[str] = field(default_factory=list)


def left_out(without: Sequence[str]) -> bool:
    """Whether the pass is.

    Raises:
        ValueError: no pass of the host is called so.
    """
    if unknown := [name for name in without if name not in (NAME, "all")]:
        raise ValueError(f"passes: without must be of {NAME} or all, got {unknown[0]!r}")
    return bool(without)


@contextmanager
def packed(path: str | Path, owner: Backend) -> Iterator[Packed]:
    """The program at `path` with packed weights, in a temporary folder that lives as long as the block.

    Raises:
        FileNotFoundError, ValueError: a file is missing, truncated or damaged.
        OSError: the folder for temporary files takes no more.
    """
    program, stored = files.read_whole(path)
    rewriting = _Rewriting(json.loads(program.read_bytes()), stored, owner)
    rewriting.run()
    with tempfile.TemporaryDirectory(prefix="fusionkit-") as folder:
        written = Packed(Path(folder) / "packed.json", None, rewriting.packs, rewriting.log())
        written.program.write_text(json.dumps(rewriting.program), encoding="utf-8")
        if rewriting.kept:
            written.parameters = Path(folder) / "packed.pdiparams"
            parameters.write(written.parameters, rewriting.kept)
        yield written


class _Rewriting:
    """Of one program, in place."""

    def __init__(self, program: dict[str, Any], stored: Path | None, owner: Backend) -> None:
        self.program, self._owner = program, owner
        self._block = program["program"]["regions"][0]["blocks"][0]
        operations: list[Operation] = self._block["ops"]
        declared = {each["O"]["%"]: each for each in operations if each["#"] == "p"}
        names = {value: each["A"][3] for value, each in declared.items()}
        found = parameters.read(stored, names.values()) if stored else {}
        self._stored = {value: found[name] for value, name in names.items()}
        self._names = names
        self.kept = dict(found)
        self._dtypes = {value["%"]: _dtype(value) for each in operations for value in _outputs(each)}
        self._next = max([*self._dtypes, *names], default=0) + 1
        self._inputs: dict[tuple[int, str], int] = {}  # weight and kind -> the input that stands for its pack
        self._doubling: dict[str, bool] = {}
        self._declarations: list[Operation] = []
        self._counts: Counter[str] = Counter()
        self.packs: list[Any] = []

    def run(self) -> None:
        branches = any("regions" in each for each in self._block["ops"])  # which may read a weight, too
        for operation in [] if branches else self._block["ops"]:
            _, _, name = operation["#"].partition(".")
            if name in _FLOATS:
                self._pack_floats(operation)
            elif name == _CODES:
                self._pack_codes(operation)
        if self.packs:
            self._leave_out_what_is_packed()

    def _leave_out_what_is_packed(self) -> None:
        read = {value["%"] for each in self._block["ops"] for value in _inputs(each)}
        unread = self._stored.keys() - read
        self.kept = {self._names[value]: each for value, each in self._stored.items() if value not in unread}
        rest = [each for each in self._block["ops"] if each["#"] != "p" or each["O"]["%"] not in unread]
        self._block["ops"] = [*self._declarations, *rest]

    def log(self) -> list[str]:
        found = self._counts or {"weight": 0}
        return [f"pass {NAME}: {count} x {kind}" for kind, count in found.items()]

    def _pack_floats(self, operation: Operation) -> None:
        x, weight, *bias = (value["%"] for value in operation["I"])
        stored, dtype = self._stored.get(weight), self._dtypes[x]
        if reason := self._reason_to_leave(stored, dtype, _attributes(operation)["batch_invariant"]):
            self._counts[f"weight left as it is: {reason}"] += 1
            return
        assert stored is not None
        if (weight, dtype) not in self._inputs:
            self._inputs[weight, dtype] = self._declared(self._made(stored.elements(), dtype=dtype))
        self._replace(operation, self._inputs[weight, dtype], stored.shape, bias[0] if bias else 0)
        self._counts[f"weight in {dtype}"] += 1

    def _reason_to_leave(self, stored: Parameter | None, dtype: str, invariant: bool) -> str | None:
        """Without batch invariance oneDNN chooses the layout. With it products of 4 rows took 2.1 to 2.5 times as long
        as the loop that reads the weight as it is, in float32 and bfloat16 (AMD EPYC Zen 3, AVX2)."""
        if stored is None:
            return "it is computed in the program"
        if dtype not in _PACKABLE or stored.dtype not in (dtype, "float32"):
            return f"{stored.dtype}, for {dtype}"
        if not invariant:
            return "its products need not be batch invariant"
        return "its pack would take twice the bytes on this processor" if self._doubles(dtype) else None

    def _doubles(self, dtype: str) -> bool:
        """Whether a pack holds 32 bits for each 16: without instructions for bfloat16 it does."""
        if dtype not in self._doubling:
            probe = np.zeros((256, 64), DTYPES[dtype])
            self._doubling[dtype] = self._made(probe, dtype=dtype).size >= 2 * probe.nbytes
        return self._doubling[dtype]

    def _pack_codes(self, operation: Operation) -> None:
        _, codes, scales, minimums, bias = (value["%"] for value in operation["I"])
        if not {codes, scales} <= self._stored.keys():
            self._counts["weight left as it is: it is computed in the program"] += 1
            return
        given = _attributes(operation)
        dtype = "int8" if given["bits"] == 8 else "int4"
        weight = QuantizedArrays(
            codes=self._stored[codes].elements(),
            scales=self._stored[scales].elements(),
            minimums=self._stored[minimums].elements() if minimums else None,
            dtype=dtype,
            in_features=given["in_features"],
            group_size=given["group_size"] or None,
            activations="int8" if given.get("rounds_x") else None,
        ).weight()
        kind = dtype if weight.activations is None else f"{dtype}, x in {weight.activations}"
        if (codes, kind) not in self._inputs:
            self._inputs[codes, kind] = self._declared(self._made(weight))
        self._replace(operation, self._inputs[codes, kind], weight.shape, bias)
        self._counts[f"weight in {kind}"] += 1

    def _made(self, weight: Any, **how: Any) -> Any:
        """The bytes of a pack, a uint8 tensor."""
        with use_backend(self._owner.name), use_batch_invariant():
            return pack_weight(weight, **how).payload_for(self._owner.name).tensor

    def _declared(self, tensor: Any) -> int:
        """An input of the program for a pack's bytes."""
        value, self._next = self._next, self._next + 1
        self._declarations.append(_input(value, f"{NAME}.{len(self.packs)}", list(tensor.shape)))
        self.packs.append(tensor)
        return value

    def _replace(self, operation: Operation, pack: int, shape: Sequence[int], bias: int) -> None:
        dialect, _, _ = operation["#"].partition(".")
        operation["#"] = f"{dialect}.{PACKED}"
        operation["I"] = [operation["I"][0], {"%": pack}, {"%": bias}]
        place = [each for each in operation["A"] if each["N"] == "struct_name"]
        sizes = [_attribute(name, "0.a_i64", size) for name, size in zip(_SIZES, shape, strict=True)]
        operation["A"] = [*sizes, _attribute("batch_invariant", "0.a_bool", True), *place]


def _input(value: int, name: str, shape: list[int]) -> Operation:
    kind = {"#": "0.t_dtensor", "D": [{"#": "0.t_ui8"}, shape, "NCHW", [], 0]}
    no_gradient = {"#": "0.a_array", "D": [{"#": "0.a_bool", "D": True}]}
    return {
        "#": "1.data",
        "A": [
            _attribute("name", "0.a_str", name),
            _attribute("shape", "1.a_intarray", shape),
            _attribute("dtype", "1.a_dtype", "uint8"),
            _attribute("place", "1.a_place", [0, 0, ""]),
        ],
        "I": [],
        "O": [{"%": value, "TT": kind}],
        "OA": [{"AT": no_gradient, "N": "stop_gradient"}],
    }


def _attribute(name: str, kind: str, data: Any) -> dict[str, Any]:
    return {"AT": {"#": kind, "D": data}, "N": name}


def _attributes(operation: Operation) -> Mapping[str, Any]:
    return {each["N"]: each["AT"].get("D") for each in operation["A"]}


def _inputs(operation: Operation) -> list[dict[str, Any]]:
    return list(operation.get("I", []))


def _outputs(operation: Operation) -> list[dict[str, Any]]:
    """Of a parameter one, of all others a list."""
    outputs: Any = operation["O"]
    return [outputs] if isinstance(outputs, dict) else list(outputs)


_WORDS = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}


def _dtype(value: dict[str, Any]) -> str:
    kind = value["TT"]
    word = kind["D"][0]["#"].rpartition("t_")[2] if kind["#"] == "0.t_dtensor" else ""
    return _WORDS.get(word, word)

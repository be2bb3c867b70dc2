"""The pass that packs every weight that a product reads, once, when the program is loaded for the host.

A parameter becomes an input of the program, the bytes of its pack, which the loader hands over at each call. Paddle's
predictor never sees the weight, so memory holds it once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusionkit.backend import Backend
from fusionkit.frameworks.numpy import DTYPES
from fusionkit.packed_weight import pack_weight
from fusionkit.passes import parameters, written
from fusionkit.passes.parameters import Parameter
from fusionkit.passes.written import Entry, attribute, attributes
from fusionkit.policy import use_backend, use_batch_invariant
from fusionkit.quantized_arrays import QuantizedArrays

NAME = "pack_weights"
PACKED = "fusionkit_fused_linear_packed"
_FLOATS = ("fusionkit_fused_linear", "fusionkit_fused_linear_bias")
_CODES = "fusionkit_quantized_linear"
_PACKABLE = ("float32", "bfloat16")
_SIZES = ("in_features", "out_features")  # attributes of a packed product


class Packing:
    """Of one program, in place.

    Args:
        file: JSON of the program.
        stored: the file of its parameters, if it has any.
        owner: the backend that packs.

    Attributes:
        packs: bytes of packed weights, tensors in the order of the program's first inputs.
        kept: parameters that are left, by name.
    """

    def __init__(self, file: Mapping[str, Any], stored: Path | None, owner: Backend) -> None:
        self._file, self._owner = file, owner
        entries = written.entries(file)
        names = {each["O"]["%"]: each["A"][-1] for each in entries if each["#"] == written.PARAMETER}
        found = parameters.read(stored, names.values()) if stored else {}
        self._stored = {value: found[name] for value, name in names.items()}
        self._names = names
        self.kept = dict(found)
        values = [value for each in entries for value in written.outputs(each)]
        self._dtypes = {value["%"]: type_.dtype for value in values if (type_ := written.type_of(value)) is not None}
        self._next = max((value["%"] for value in values), default=0) + 1
        self._inputs: dict[tuple[int, str], int] = {}  # weight and kind -> the input that stands for its pack
        self._doubling: dict[str, bool] = {}
        self._declarations: list[Entry] = []
        self._counts: Counter[str] = Counter()
        self.packs: list[Any] = []

    def run(self) -> None:
        for entry in [] if written.has_branches(self._file) else written.entries(self._file):
            name = written.name_of(entry)
            if name in _FLOATS:
                self._pack_floats(entry)
            elif name == _CODES:
                self._pack_codes(entry)
        if self.packs:
            self._leave_out_what_is_packed()

    def _leave_out_what_is_packed(self) -> None:
        entries = written.entries(self._file)
        unread = self._stored.keys() - {value for each in entries for value in written.inputs(each)}
        self.kept = {self._names[value]: each for value, each in self._stored.items() if value not in unread}
        rest = [each for each in entries if each["#"] != written.PARAMETER or each["O"]["%"] not in unread]
        written.set_entries(self._file, [*self._declarations, *rest])

    def log(self) -> list[str]:
        found = self._counts or {"weight": 0}
        return [f"pass {NAME}: {count} x {kind}" for kind, count in found.items()]

    def _pack_floats(self, entry: Entry) -> None:
        x, weight, *bias = written.inputs(entry)
        stored, dtype = self._stored.get(weight), self._dtypes[x]
        if reason := self._reason_to_leave(stored, dtype, attributes(entry)["batch_invariant"]):
            self._counts[f"weight left as it is: {reason}"] += 1
            return
        assert stored is not None
        if (weight, dtype) not in self._inputs:
            self._inputs[weight, dtype] = self._declared(self._made(stored.elements(), dtype=dtype))
        self._replace(entry, self._inputs[weight, dtype], stored.shape, bias[0] if bias else 0)
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

    def _pack_codes(self, entry: Entry) -> None:
        _, codes, scales, minimums, bias = written.inputs(entry)
        if not {codes, scales} <= self._stored.keys():
            self._counts["weight left as it is: it is computed in the program"] += 1
            return
        given = attributes(entry)
        dtype = "int8" if given["bits"] == 8 else "int4"
        weight = QuantizedArrays(
            codes=self._stored[codes].elements(),
            scales=self._stored[scales].elements(),
            minimums=self._stored[minimums].elements() if minimums else None,
            dtype=dtype,
            in_features=given["in_features"],
            group_size=given["group_size"] or None,
            activations="int8" if given["rounds_x"] else None,
        ).weight()
        kind = dtype if weight.activations is None else f"{dtype}, x in {weight.activations}"
        if (codes, kind) not in self._inputs:
            self._inputs[codes, kind] = self._declared(self._made(weight))
        self._replace(entry, self._inputs[codes, kind], weight.shape, bias)
        self._counts[f"weight in {kind}"] += 1

    def _made(self, weight: Any, **how: Any) -> Any:
        """The bytes of a pack, a uint8 tensor."""
        with use_backend(self._owner.name), use_batch_invariant():
            return pack_weight(weight, **how).payload_for(self._owner.name).tensor

    def _declared(self, tensor: Any) -> int:
        """An input of the program for a pack's bytes."""
        value, self._next = self._next, self._next + 1
        self._declarations.append(written.input_of_bytes(value, f"{NAME}.{len(self.packs)}", list(tensor.shape)))
        self.packs.append(tensor)
        return value

    def _replace(self, entry: Entry, pack: int, shape: Sequence[int], bias: int) -> None:
        dialect, _, _ = entry["#"].partition(".")
        entry["#"] = f"{dialect}.{PACKED}"
        entry["I"] = [entry["I"][0], {"%": pack}, {"%": bias}]
        place = [each for each in entry["A"] if each["N"] == "struct_name"]
        sizes = [attribute(name, "0.a_i64", size) for name, size in zip(_SIZES, shape, strict=True)]
        entry["A"] = [*sizes, attribute("batch_invariant", "0.a_bool", True), *place]

"""The CPU backend: C++ kernels for host memory, in one path for each target of targets.py, chosen at run time."""

from __future__ import annotations

import re
from pathlib import Path

from fusionkit_backends.cpu import freed_memory, health, targets, threads
from fusionkit_backends.cpu.serial import SERIAL, IsSerial

from fusionkit.adapters.conditions import UNTRACED_GROUP
from fusionkit.backend import Backend, Check, Kernel
from fusionkit.capability import AllOf, OneOf, Predicate
from fusionkit.dtypes import QUANTIZED
from fusionkit.ops import OP_NAMES, load_spec
from fusionkit.spec import HELD_AS_ARRAYS, ROUNDING_ARRAYS


def _copied(name: str) -> tuple[Predicate, str]:
    """The kernels read strided memory; Paddle 3.3 makes a custom op's inputs contiguous before it calls one."""
    strided = AllOf((OneOf("framework", ("paddle",)), OneOf(f"{name}.contiguous", (False,))))
    return strided, f"{name} is not contiguous: Paddle copies it"


_SERIAL: dict[str, tuple[Predicate, str]] = {
    "all_gather_matmul": (IsSerial("gather", "rows"), SERIAL),
    "matmul_reduce_scatter": (IsSerial("scatter", "scattered_rows"), SERIAL),
    "matmul_all_reduce": (IsSerial("reduce_all", "..."), SERIAL),
}


_CONDITIONS: dict[str, tuple[Predicate, ...]] = {"fused_linear_cross_entropy": (UNTRACED_GROUP,)}

# Each row is computed by itself, or its sums have an order that other rows do not change.
_BATCH_INVARIANT = (
    "fused_linear",
    "fusion_add_rms_norm",
    "fusion_rms_norm",
    "fusion_rope",
    "paged_attention",
    "swiglu",
)

_NOTES: dict[str, tuple[tuple[Predicate, str], ...]] = {
    "fused_linear": (
        (
            OneOf("weight.dtype", QUANTIZED),
            "a quantized pack: for any number of rows of x, in any floating dtype; multiplied in float32; batch"
            " invariant; a gradient of x and of the bias, none of the pack; not in a traced program",
        ),
        (
            OneOf("weight.activations", ("int8",)),
            "x is rounded to int8: each 32 numbers of a row, 16 beside groups of 16, by their largest / 127",
        ),
    )
}

_OPERANDS = (None, "cpu", HELD_AS_ARRAYS, ROUNDING_ARRAYS)  # tensors, own packs, and the arrays of a quantized weight
_DEFINED = re.compile(r"^def (\w+)\(", re.MULTILINE)


def _kernel(op: str, source: Path) -> Kernel:
    """What a file defines is what its kernel has: `through_<framework>`, `vjp`, `pack...`. It is read, not imported."""
    module = f"fusionkit_backends.cpu.{op}"
    defined = _DEFINED.findall(source.read_text(encoding="utf-8"))
    frameworks = [name.removeprefix("through_") for name in defined if name.startswith("through_")]
    spec = load_spec(op)
    notes = tuple(_copied(declared.name) for declared in spec.inputs if declared.name not in spec.mutates)
    packable = tuple(declared.name for declared in spec.inputs if declared.packable)
    return Kernel(
        functions={framework: f"{module}:through_{framework}" for framework in frameworks},
        vjp=f"{module}:vjp" if "vjp" in defined else None,
        directions=("forward", "backward") if "vjp" in defined else ("forward",),
        when=(*(OneOf(f"{name}.packed_by", _OPERANDS) for name in packable), *_CONDITIONS.get(op, ())),
        pack=f"{module}:pack" if "pack" in defined else None,
        pack_quantized=f"{module}:pack_quantized" if "pack_quantized" in defined else None,
        pack_rounding=f"{module}:pack_quantized" if "pack_quantized" in defined else None,
        differentiates_quantized="pack_quantized" in defined,
        checks_sizes=not spec.collective,
        batch_invariant=op in _BATCH_INVARIANT,
        notes=(*notes, *_NOTES.get(op, ()), *((_SERIAL[op],) if op in _SERIAL else ())),
    )


def _doctor() -> list[Check]:
    return [*health.doctor(), threads.check(), freed_memory.check()]


backend = Backend(
    name="cpu",
    device_types=("cpu",),
    proven_on="hardware",
    kernels={op: _kernel(op, file) for op in OP_NAMES if (file := Path(__file__).with_name(f"{op}.py")).exists()},
    available=health.unavailable,
    doctor=_doctor,
    settings={"FUSIONKIT_CPU_ISA": targets.NAMES, freed_memory.SETTING: ("0", "1")},
    benchmark="fusionkit_backends.cpu.benchmark",
    neutral_ops="fusionkit_backends.cpu.paddle_ops:load",
    passes="fusionkit_backends.cpu.passes:passes",
)

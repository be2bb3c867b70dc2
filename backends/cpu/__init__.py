"""The CPU backend: C++ kernels for host memory, with AVX-512, AVX2 and portable paths chosen at run time."""

from __future__ import annotations

from pathlib import Path

from fusionkit_backends.cpu import health, threads
from fusionkit_backends.cpu.serial import SERIAL, IsSerial

from fusionkit.backend import Backend, Check, Kernel
from fusionkit.capability import AllOf, OneOf, Predicate
from fusionkit.ops import OP_NAMES, load_spec


def _copied(name: str) -> tuple[Predicate, str]:
    """The kernels read strided memory; Paddle 3.3 makes a custom op's inputs contiguous before it calls one."""
    strided = AllOf((OneOf("framework", ("paddle",)), OneOf(f"{name}.contiguous", (False,))))
    return strided, f"{name} is not contiguous: Paddle copies it"


_SERIAL: dict[str, tuple[Predicate, str]] = {
    "all_gather_matmul": (IsSerial("gather", "rows"), SERIAL),
    "matmul_reduce_scatter": (IsSerial("scatter", "scattered_rows"), SERIAL),
    "matmul_all_reduce": (IsSerial("reduce_all", "..."), SERIAL),
}


def _kernel(op: str) -> Kernel:
    module = f"fusionkit_backends.cpu.{op}"
    spec = load_spec(op)
    notes = tuple(_copied(declared.name) for declared in spec.inputs if declared.name not in spec.mutates)
    packs = op == "fused_linear"
    return Kernel(
        functions={"paddle": f"{module}:through_paddle", "numpy": f"{module}:through_numpy"},
        vjp=f"{module}:vjp" if spec.reference_vjp else None,
        directions=("forward", "backward") if spec.reference_vjp else ("forward",),
        when=(OneOf("weight.packed_by", (None, "cpu")),) if packs else (),
        pack=f"{module}:pack" if packs else None,
        checks_sizes=not spec.collective,
        notes=(*notes, *((_SERIAL[op],) if spec.collective else ())),
    )


def _doctor() -> list[Check]:
    return [*health.doctor(), threads.check()]


backend = Backend(
    name="cpu",
    device_types=("cpu",),
    kernels={op: _kernel(op) for op in OP_NAMES if Path(__file__).with_name(f"{op}.py").exists()},
    available=health.unavailable,
    doctor=_doctor,
    settings={"FUSIONKIT_CPU_ISA": ("avx512", "avx2", "portable")},
    benchmark="fusionkit_backends.cpu.benchmark",
    neutral_ops="fusionkit_backends.cpu.paddle_ops:load",
)

"""The backend that runs everywhere: each op composed of Paddle's own ops.

It is what a user would write by hand, so it is also the peer that fused kernels are measured against.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from fusionkit.backend import ANY_DEVICE, Backend, Check, Kernel
from fusionkit.capability import AllOf, Not, OneOf, Predicate
from fusionkit.ops import OP_NAMES, load_spec

# Paddle 3.3 has no matrix product, addition or softmax in 16 bits on its CPU place.
_IN_FLOAT32 = "16-bit values on Paddle's CPU place are computed in float32 and rounded once"


def available() -> str | None:
    if importlib.util.find_spec("paddle") is None:
        return "Paddle is not installed: pip install paddlepaddle==3.3.1"
    return None


def doctor() -> list[Check]:
    missing = available()
    return [Check("Paddle", missing is None, missing or "installed", "pip install paddlepaddle==3.3.1")]


_CONDITIONS: dict[str, tuple[Predicate, ...]] = {
    "fused_linear": (OneOf("weight.packed_by", (None, "eager")),),
    "paged_attention": (Not(OneOf("traced", (True,)), "the lengths are read on the host, and a graph is traced"),),
}


def _kernel(op: str) -> Kernel:
    spec = load_spec(op)
    packs = op == "fused_linear"
    sixteen_bits = OneOf(f"{spec.inputs[0].name}.dtype", ("bfloat16", "float16"))
    return Kernel(
        functions={"paddle": f"fusionkit.eager.{op}:{op}"},
        directions=("forward", "backward") if spec.reference_vjp else ("forward",),
        when=_CONDITIONS.get(op, ()),
        pack="fusionkit.eager.fused_linear:pack" if packs else None,
        notes=((AllOf((sixteen_bits, OneOf("device_type", ("cpu",)))), _IN_FLOAT32),),
    )


backend = Backend(
    name="eager",
    device_types=(ANY_DEVICE,),
    kernels={op: _kernel(op) for op in OP_NAMES if Path(__file__).with_name(f"{op}.py").exists()},
    available=available,
    doctor=doctor,
)

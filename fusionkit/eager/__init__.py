"""The backend that runs everywhere: each op composed of Paddle's own ops.

It is what a user would write by hand, so it is also the peer that fused kernels are measured against.
"""

from __future__ import annotations

from pathlib import Path

from fusionkit import extras
from fusionkit.adapters.conditions import UNTRACED_GROUP
from fusionkit.attempt import tried
from fusionkit.backend import ANY_DEVICE, Backend, Check, Kernel
from fusionkit.capability import AllOf, Not, OneOf, Predicate
from fusionkit.dtypes import SIXTEEN_BITS
from fusionkit.ops import OP_NAMES, load_spec

REINSTALL = "pip install --force-reinstall paddlepaddle==3.3.1"
# Paddle 3.3 has no matrix product, addition or softmax in 16 bits on its CPU place.
_IN_FLOAT32 = "16-bit values on Paddle's CPU place are computed in float32 and rounded once"


CALL = """
import numpy as np
import paddle
import fusionkit as fk

with fk.use_backend("eager"):
    assert np.allclose(fk.swiglu(paddle.ones([2, 8]), paddle.ones([2, 8])).numpy(), 1 / (1 + np.exp(-1)))
print(f"{paddle.version.full_version} computes")
"""


def available() -> str | None:
    return extras.missing("paddle")


def doctor() -> list[Check]:
    if missing := available():
        return [Check("Paddle", False, missing, extras.command("paddle"))]
    return [tried("Paddle", CALL, REINSTALL)]


_CONDITIONS: dict[str, tuple[Predicate, ...]] = {
    "fused_linear_cross_entropy": (UNTRACED_GROUP,),
    "fused_linear": (OneOf("weight.packed_by", (None, "eager")),),
    "paged_attention": (Not(OneOf("traced", (True,)), "the lengths are read on the host, and a graph is traced"),),
}


def _kernel(op: str) -> Kernel:
    spec = load_spec(op)
    packs = op == "fused_linear"
    sixteen_bits = OneOf(f"{spec.inputs[0].name}.dtype", SIXTEEN_BITS)
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
    proven_on="hardware",
    kernels={op: _kernel(op) for op in OP_NAMES if Path(__file__).with_name(f"{op}.py").exists()},
    available=available,
    doctor=doctor,
)

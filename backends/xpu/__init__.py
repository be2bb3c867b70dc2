"""The xpu backend: Kunlun cards, through the fused functions of a Paddle built for XPU and of paddle_xpu_nn.

Not run on a card: the calls are checked against the signatures of Paddle's own Python functions, and nothing more.
"""

from __future__ import annotations

from fusionkit_backends.xpu import health

from fusionkit.adapters.conditions import MASTER_WEIGHT
from fusionkit.backend import Backend, Kernel
from fusionkit.capability import InverseRoot, OneOf, Present
from fusionkit.dtypes import SIXTEEN_BITS


def _functions(op: str) -> dict[str, str]:
    return {"paddle": f"fusionkit_backends.xpu.{op}:{op}"}


backend = Backend(
    name="xpu",
    device_types=("xpu",),
    proven_on="none",
    kernels={
        "fusion_rms_norm": Kernel(
            functions=_functions("fusion_rms_norm"),
            notes=((MASTER_WEIGHT, "computed in float32: the weight must not be rounded"),),
            available=health.paddle_xpu_nn_missing,
        ),
        "fusion_rope": Kernel(
            functions=_functions("fusion_rope"),
            notes=((OneOf("q.dtype", SIXTEEN_BITS), "computed in float32: cos and sin must not be rounded"),),
        ),
        "flash_attention": Kernel(
            functions=_functions("flash_attention"),
            dtypes=SIXTEEN_BITS,
            when=(InverseRoot("scale", "head_dim"),),
            notes=(
                (
                    Present("startend_row_indices"),
                    "startend_row_indices become a dense mask of 2 x batch_size x heads x q_len x kv_len bytes",
                ),
            ),
        ),
    },
    gaps={"fused_linear": "the vendor's are layers with parameters of their own, paddle_xpu.layers.nn"},
    available=health.unavailable,
    doctor=health.checks,
)

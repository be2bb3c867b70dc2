"""The gcu backend: Enflame cards, through the custom ops of Paddle's gcu plugin. All of them are forward only.

Proven on the emulator only; no card has run it.
"""

from __future__ import annotations

import functools

from fusionkit_backends.gcu import health

from fusionkit.adapters.conditions import MASTER_WEIGHT
from fusionkit.backend import Backend, Kernel
from fusionkit.capability import InverseRoot, OneOf, Predicate, Present, When
from fusionkit.dtypes import FLOATING, SIXTEEN_BITS
from fusionkit.frameworks import custom_device

# The op rounds the sum to the dtype of its inputs before the norm: a wider x or weight would be a sum left unrounded.
_SUM_IN_RESIDUAL_DTYPE = tuple(
    When(OneOf("residual.dtype", (dtype,)), OneOf(f"{name}.dtype", (dtype,)))
    for dtype in SIXTEEN_BITS
    for name in ("x", "weight")
)


def _kernel(
    op: str,
    custom_op: str,
    arguments: tuple[int, int],
    dtypes: tuple[str, ...] = FLOATING,
    when: tuple[Predicate, ...] = (),
    notes: tuple[tuple[Predicate, str], ...] = (),
) -> Kernel:
    return Kernel(
        functions={"paddle": f"fusionkit_backends.gcu.{op}:{op}"},
        dtypes=dtypes,
        directions=("forward",),
        when=when,
        notes=notes,
        available=functools.partial(custom_device.missing_op, custom_op, arguments),
    )


backend = Backend(
    name="gcu",
    device_types=("gcu",),
    proven_on="emulator",
    kernels={
        "fusion_rms_norm": _kernel(
            "fusion_rms_norm",
            "rms_norm_gcu",
            (2, 1),
            notes=((MASTER_WEIGHT, "computed in float32: the vendor's op takes one dtype for x and weight"),),
        ),
        "fusion_add_rms_norm": _kernel(
            "fusion_add_rms_norm",
            "fused_add_rms_norm_op",
            (3, 1),
            when=_SUM_IN_RESIDUAL_DTYPE,
            notes=((Present("x"), "x and residual are copied: the vendor's op writes into them"),),
        ),
        "fusion_rope": _kernel("fusion_rope", "fused_rotary_embedding_gcu", (4, 1)),
        "flash_attention": _kernel(
            "flash_attention",
            "fused_sdp_flash_attention_gcu",
            (4, 3),
            dtypes=("float16",),
            when=(
                InverseRoot("scale", "head_dim"),
                When(Present("attn_mask"), OneOf("attn_mask.num_heads", (1,))),
                When(Present("startend_row_indices"), OneOf("startend_row_indices.num_key_value_heads", (1,))),
            ),
            notes=(
                (
                    Present("startend_row_indices"),
                    "startend_row_indices become a dense mask of 2 x batch_size x q_len x kv_len bytes",
                ),
            ),
        ),
    },
    available=functools.partial(custom_device.missing, "gcu"),
    stand_in=health.stand_in,
    doctor=health.checks,
)

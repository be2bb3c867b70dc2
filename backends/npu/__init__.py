"""The npu backend: Ascend cards, through the custom ops of Paddle's npu plugin.

Proven on the emulator only; no card has run it.
"""

from __future__ import annotations

import functools

from fusionkit_backends.npu import health

from fusionkit.backend import Backend, DeviceModel, Kernel
from fusionkit.capability import AllOf, InverseRoot, MultipleOf, Not, OneOf, Predicate, Present, When
from fusionkit.frameworks import custom_device

_SIXTEEN_BITS = ("bfloat16", "float16")
_MASTER_WEIGHT = AllOf((OneOf("x.dtype", _SIXTEEN_BITS), OneOf("weight.dtype", ("float32",))))
_IN_FLOAT32 = "computed in float32: the vendor's op takes one dtype for all its inputs, and {} must not be rounded"
_RATES = (
    "planning figures, no data sheet, which the vendor does not publish: a product at 250 TFLOP/s, and 24 of the 28 "
    "GB/s that each of a card's seven HCCS links nominally has in one direction (392 GB/s, all in both directions)"
)
_WHOLE_LAYER = "the vendor has it only inside fused_blha_layer_op, a whole decoder layer"


def _device(name: str, memory_bytes: float) -> DeviceModel:
    return DeviceModel(
        name=name,
        flops={"bfloat16": 250e12, "float16": 250e12},
        memory_bytes=memory_bytes,
        memory_bandwidth=1600e9,
        link_bandwidth=24e9,
        link_topology="mesh",
        source=_RATES,
    )


def _kernel(
    op: str,
    custom_op: str,
    *arguments: tuple[int, int],
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16"),
    when: tuple[Predicate, ...] = (),
    notes: tuple[tuple[Predicate, str], ...] = (),
) -> Kernel:
    """`arguments`: the numbers of inputs and attributes that the adapter can serve."""
    return Kernel(
        functions={"paddle": f"fusionkit_backends.npu.{op}:{op}"},
        dtypes=dtypes,
        when=when,
        notes=notes,
        available=functools.partial(custom_device.missing_op, custom_op, *arguments),
    )


backend = Backend(
    name="npu",
    device_types=("npu",),
    proven_on="emulator",
    kernels={
        "fusion_rms_norm": _kernel(
            "fusion_rms_norm",
            "rms_norm_npu",
            (2, 1),
            notes=((_MASTER_WEIGHT, _IN_FLOAT32.format("the weight")),),
        ),
        "fusion_rope": _kernel(
            "fusion_rope",
            "fused_rope",
            (3, 0),
            when=(OneOf("interleaved", (False,)), MultipleOf("head_dim", 64)),
            notes=((OneOf("q.dtype", _SIXTEEN_BITS), _IN_FLOAT32.format("cos and sin")),),
        ),
        "flash_attention": _kernel(
            "flash_attention",
            "flash_attention_npu",
            (5, 5),
            (7, 6),
            dtypes=_SIXTEEN_BITS,
            when=(
                InverseRoot("scale", "head_dim"),
                When(Present("attn_mask"), OneOf("attn_mask.dtype", ("bool",))),
                When(Present("attn_mask"), OneOf("attn_mask.num_heads", (1,))),
                When(Present("startend_row_indices"), OneOf("startend_row_indices.num_key_value_heads", (1,))),
                Not(
                    OneOf("return_lse", (True,)), "return_lse is not offered: the vendor's statistics have no gradient"
                ),
            ),
            notes=(
                (
                    Present("startend_row_indices"),
                    "startend_row_indices become a dense mask of batch_size x q_len x kv_len bytes",
                ),
            ),
        ),
    },
    gaps={"paged_attention": _WHOLE_LAYER},
    available=functools.partial(custom_device.missing, "npu"),
    doctor=health.checks,
    device_models={
        "910B-64GB": _device("910B-64GB", 64e9),
        "910B-32GB": _device("910B-32GB", 32e9),
    },
)

"""The npu backend: Ascend cards, through the custom ops of Paddle's npu plugin.

Proven on the emulator only; no card has run it.
"""

from __future__ import annotations

import functools

from fusionkit_backends.npu import health
from fusionkit_backends.npu.communication import OneDomain

from fusionkit.adapters.conditions import MASTER_WEIGHT
from fusionkit.backend import Backend, DeviceModel, Kernel
from fusionkit.capability import AllOf, Between, InverseRoot, MultipleOf, OneOf, Predicate, Present, Training, When
from fusionkit.dtypes import FLOATING, SIXTEEN_BITS
from fusionkit.frameworks import custom_device

_IN_FLOAT32 = "computed in float32: the vendor's op takes one dtype for all its inputs, and {} must not be rounded"
_RATES = (
    "planning figures, no data sheet, which the vendor does not publish: a product at 250 TFLOP/s, and 24 of the 28 "
    "GB/s that each of a card's seven HCCS links nominally has in one direction (392 GB/s, all in both directions)"
)
_WHOLE_LAYER = "the vendor has it only inside fused_blha_layer_op, a whole decoder layer"
_ALWAYS = AllOf(())
_NOT_DETERMINISTIC = "the vendor's sum over ranks is not deterministic by default"
_GATHER, _SCATTER = ("fused_allgather_mm", (3, 5)), ("fused_mm_reduce_scatter", (3, 4))
# aclnnAllGatherMatmul and aclnnMatmulReduceScatter, each of which is the other's gradient of x.
_DEPTHS = (
    Between("in_features", 256, 65535),
    When(Training(), Between("out_features", 256, 65535)),
)


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
    dtypes: tuple[str, ...] = FLOATING,
    when: tuple[Predicate, ...] = (),
    notes: tuple[tuple[Predicate, str], ...] = (),
) -> Kernel:
    """`arguments`: the numbers of inputs and attributes that the kernel can serve."""
    return Kernel(
        functions={"paddle": f"fusionkit_backends.npu.{op}:{op}"},
        dtypes=dtypes,
        when=when,
        notes=notes,
        available=functools.partial(custom_device.missing_op, custom_op, *arguments),
    )


def _missing_fused_product(*custom_ops: tuple[str, tuple[int, int]]) -> str | None:
    reasons = (custom_device.missing_op(name, arguments) for name, arguments in custom_ops)
    return health.outdated_cann() or next(filter(None, reasons), None)


def _collective(
    op: str,
    *custom_ops: tuple[str, tuple[int, int]],
    when: tuple[Predicate, ...],
    notes: tuple[tuple[Predicate, str], ...],
) -> Kernel:
    """A product fused with a collective, on A2 cards. The vendor takes up to 32 ranks of A3, which nothing here stands
    for, and an all-reduce of one rank, for which Paddle has no process group."""
    return Kernel(
        functions={"paddle": f"fusionkit_backends.npu.{op}:{op}"},
        dtypes=SIXTEEN_BITS,
        when=(OneOf("world_size", (2, 4, 8)), *when, OneDomain()),
        notes=(
            (_ALWAYS, "needs CANN and a driver of at least 8.0.RC2: older ones end in a bus error"),
            (AllOf((MASTER_WEIGHT, Training())), "the weight's gradient is a float32 product: 16 bits would round it"),
            *notes,
        ),
        available=functools.partial(_missing_fused_product, *custom_ops),
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
            notes=((MASTER_WEIGHT, _IN_FLOAT32.format("the weight")),),
        ),
        "fusion_rope": _kernel(
            "fusion_rope",
            "fused_rope",
            (3, 0),
            when=(MultipleOf("head_dim", 64),),
            notes=((OneOf("q.dtype", SIXTEEN_BITS), _IN_FLOAT32.format("cos and sin")),),
        ),
        "flash_attention": _kernel(
            "flash_attention",
            "flash_attention_npu",
            (5, 5),
            (7, 6),
            dtypes=SIXTEEN_BITS,
            when=(
                InverseRoot("scale", "head_dim"),
                When(Present("attn_mask"), OneOf("attn_mask.dtype", ("bool",))),
                When(Present("attn_mask"), OneOf("attn_mask.num_heads", (1,))),
                When(Present("startend_row_indices"), OneOf("startend_row_indices.num_key_value_heads", (1,))),
            ),
            notes=(
                (
                    Present("startend_row_indices"),
                    "startend_row_indices become a dense mask of batch_size x q_len x kv_len bytes",
                ),
            ),
        ),
        "all_gather_matmul": _collective(
            "all_gather_matmul",
            _GATHER,
            _SCATTER,
            when=_DEPTHS,
            notes=((Training(), _NOT_DETERMINISTIC),),
        ),
        "matmul_reduce_scatter": _collective(
            "matmul_reduce_scatter",
            _SCATTER,
            _GATHER,
            when=_DEPTHS,
            notes=((_ALWAYS, _NOT_DETERMINISTIC),),
        ),
        "matmul_all_reduce": _collective(
            "matmul_all_reduce",
            ("fused_mm_allreduce", (3, 3)),
            when=(),
            notes=(
                (_ALWAYS, _NOT_DETERMINISTIC),
                (OneOf("defer", (True,)), "the sum is queued as a whole: nothing of it hides under what comes next"),
            ),
        ),
    },
    gaps={"paged_attention": _WHOLE_LAYER},
    environment_aliases={"FLAGS_NPU_MC2": "FUSIONKIT_MC2"},
    available=functools.partial(custom_device.missing, "npu"),
    stand_in=health.stand_in,
    doctor=health.checks,
    passes="fusionkit_backends.npu.passes:passes",
    device_models={
        "910B-64GB": _device("910B-64GB", 64e9),
        "910B-32GB": _device("910B-32GB", 32e9),
    },
)

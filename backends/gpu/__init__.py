"""The gpu backend: NVIDIA cards, through the fused functions of a Paddle built for CUDA, and through Triton kernels on
PyTorch tensors.

Not run on a card. Calls of Paddle's functions are checked against their signatures; the Triton kernels run in Triton's
interpreter on the CPU and compile for sm_80 and sm_90.
"""

from __future__ import annotations

from fusionkit_backends.gpu import health, triton_support
from fusionkit_backends.gpu.attention_choice import PLAIN, PLAIN_NOTE, SETTING

from fusionkit.adapters.conditions import MASTER_WEIGHT
from fusionkit.backend import Backend, DeviceModel, Kernel
from fusionkit.capability import Between, InverseRoot, MultipleOf, Not, OneOf, Predicate, Present
from fusionkit.dtypes import FLOATING, SIXTEEN_BITS
from fusionkit.ops import load_spec

_UNPACKED = OneOf("weight.packed_by", (None,))


def _kernel(
    op: str,
    dtypes: tuple[str, ...] = FLOATING,
    when: tuple[Predicate, ...] = (),
    notes: tuple[tuple[Predicate, str], ...] = (),
    for_torch: Kernel | None = None,
) -> Kernel:
    """Paddle's function, and the Triton kernel for PyTorch tensors where there is one."""
    return Kernel(
        {"paddle": f"fusionkit_backends.gpu.{op}:{op}"},
        dtypes=dtypes,
        when=when,
        notes=notes,
        available=health.paddle_unavailable,
        for_framework={"torch": for_torch or torch_kernel(op)} if for_torch or op in _TORCH else {},
    )


def torch_kernel(op: str, when: tuple[Predicate, ...] = (), notes: tuple[tuple[Predicate, str], ...] = ()) -> Kernel:
    """`autograd/<op>.py`: any size and stride, in the three floating dtypes. It refuses wrong sizes itself."""
    return Kernel(
        {"torch": f"fusionkit_backends.gpu.autograd.{op}:{op}"},
        directions=("forward", "backward") if load_spec(op).reference_vjp else ("forward",),
        when=when,
        notes=notes,
        checks_sizes=True,
        available=health.torch_unavailable,
    )


_TORCH = {"fusion_rms_norm", "fusion_rope", "swiglu"}  # ops of Paddle's that have a Triton kernel too


backend = Backend(
    name="gpu",
    device_types=("gpu", "cuda"),  # as Paddle and PyTorch name it
    proven_on="none",
    kernels={
        "fusion_rms_norm": _kernel(
            "fusion_rms_norm", notes=((MASTER_WEIGHT, "computed in float32: the weight must not be rounded"),)
        ),
        "fusion_rope": _kernel(
            "fusion_rope",
            notes=((OneOf("q.dtype", SIXTEEN_BITS), "computed in float32: cos and sin must not be rounded"),),
        ),
        "fusion_add_rms_norm": Kernel(
            {"paddle": "fusionkit_backends.gpu.fusion_add_rms_norm:fusion_add_rms_norm"},
            when=(Not(OneOf("traced", (True,)), "the Triton kernel is launched, and a graph is traced"),),
            available=triton_support.unavailable,
            for_framework={"torch": torch_kernel("fusion_add_rms_norm")},
        ),
        # Paddle's own limits on its flash attention: paddle/nn/functional/sdpa.py, check_head_dim_size_flash.
        "flash_attention": _kernel(
            "flash_attention",
            dtypes=SIXTEEN_BITS,
            when=(
                MultipleOf("head_dim", 8),
                Between("head_dim", 8, 257),
                InverseRoot("scale", "head_dim"),
            ),
            notes=((Present("startend_row_indices"), "rows that see no key are what Paddle's kernel makes of them"),),
            for_torch=torch_kernel(
                "flash_attention", when=(Between("head_dim", 1, 257),), notes=((PLAIN, PLAIN_NOTE),)
            ),
        ),
        "paged_attention": torch_kernel("paged_attention", when=(Between("head_dim", 1, 257),)),
        "swiglu": _kernel("swiglu"),
        "fused_linear": _kernel(
            "fused_linear",
            when=(_UNPACKED,),
            for_torch=torch_kernel("fused_linear", when=(_UNPACKED,), notes=((_UNPACKED, "the product is cuBLAS's"),)),
        ),
        "fused_linear_cross_entropy": torch_kernel(
            "fused_linear_cross_entropy",
            notes=((OneOf("framework", ("torch",)), "products are cuBLAS's, the cross entropy Triton's"),),
        ),
    },
    available=health.unavailable,
    doctor=health.checks,
    settings={SETTING: ("auto", "triton"), "FUSIONKIT_GPU_CHECK_VALUES": ("0", "1")},
    device_models={
        "A100-SXM4-80GB": DeviceModel(
            name="A100-SXM4-80GB",
            flops={"bfloat16": 312e12, "float16": 312e12, "float32": 19.5e12},
            memory_bytes=80e9,
            memory_bandwidth=2039e9,
            link_bandwidth=300e9,
            source="NVIDIA A100 Tensor Core GPU data sheet, 2021: dense peak rates; half of the 600 GB/s that NVLink "
            "has in both directions",
        ),
        "H100-SXM5-80GB": DeviceModel(
            name="H100-SXM5-80GB",
            flops={"bfloat16": 989.4e12, "float16": 989.4e12, "float32": 66.9e12},
            memory_bytes=80e9,
            memory_bandwidth=3350e9,
            link_bandwidth=450e9,
            source="NVIDIA H100 Tensor Core GPU Architecture, 2022: dense peak rates; half of the 900 GB/s that NVLink "
            "has in both directions",
        ),
        "H200-SXM5-141GB": DeviceModel(
            name="H200-SXM5-141GB",
            flops={"bfloat16": 989.4e12, "float16": 989.4e12, "float32": 66.9e12},
            memory_bytes=141e9,
            memory_bandwidth=4800e9,
            link_bandwidth=450e9,
            source="NVIDIA H200 Tensor Core GPU data sheet, 2024: the H100's dense peak rates; half of the 900 GB/s "
            "that NVLink has in both directions",
        ),
    },
)

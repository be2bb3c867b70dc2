"""What `fusionkit bench` needs of the CPU: its ceilings, kernels into memory made before, and the promised ratios."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from fusionkit_backends.cpu import library_products, runtime
from fusionkit_bench.subject import FORWARD, TRAINING
from fusionkit_bench.target import Target

from fusionkit import kernel_function
from fusionkit.ops import load_spec
from fusionkit.spec import Cost

Call = Callable[[], object]

MC2 = "fusionkit_backends.cpu.benchmark_mc2"  # what `fusionkit bench mc2` needs

# Their function of gradients runs the forward pass first.
GRADIENTS_WITH_FORWARD = {"fusion_rms_norm", "fusion_add_rms_norm", "flash_attention", "fused_linear_cross_entropy"}

# Rows, in and out features of the product whose rate is the ceiling of what is no product itself.
STANDARD_PRODUCT = (1024, 5120, 5120)
FEW_ROWS = 256  # of such a product the weight's bytes are the floor, and its own rate says nothing
PEAK_S = 0.02  # of one call at the peak

WHOLE = r"T(1024|2048)x.*"  # against calls of 1 to 64 rows, which the processor's caches hold
FEW = r"T(1|8|64)x.*"
NORMS = "fusion_rms_norm|fusion_add_rms_norm|swiglu"
LINEAR, ATTENTION, LOSS = "fused_linear", "flash_attention", "fused_linear_cross_entropy"
ATTENTION_OTHERS = r"S1024(?!-causal).*|S777.*|S1023.*|Sq512.*"
DOCUMENTS = r"S4096-documents.*"

TARGETS = (
    Target(NORMS, WHOLE, FORWARD, "ceiling", 0.85),
    Target(NORMS, WHOLE, TRAINING, "ceiling", 0.75),
    Target("fusion_rope", ".*", FORWARD, "ceiling", 0.85),
    Target("fusion_rope", ".*", TRAINING, "ceiling", 0.80),
    Target(LINEAR, r"T1024x\w+", FORWARD, "ceiling", 0.93),
    Target(LINEAR, r"T1024x\w+-packed", FORWARD, "ceiling", 0.97),
    Target(LINEAR, r"T1x.*-int[48]-.*", FORWARD, "ceiling", 0.85, state="cold"),
    Target(LINEAR, r"T1024x\w+", TRAINING, "ceiling", 0.88),
    *(
        Target(ATTENTION, case, direction, "ceiling", share, "bfloat16")
        for case, share in (("S1024-causal", 0.80), ("S4096-causal", 0.85))
        for direction in (FORWARD, TRAINING)
    ),
    Target(ATTENTION, "S1024-causal", FORWARD, "torch", 3.0, "bfloat16"),
    Target(ATTENTION, "S4096-causal", FORWARD, "torch", 2.5, "bfloat16"),
    Target(ATTENTION, "S1024-causal", TRAINING, "torch", 2.5, "bfloat16"),
    Target(ATTENTION, "S4096-causal", TRAINING, "torch", 2.2, "bfloat16"),
    *(Target(ATTENTION, ATTENTION_OTHERS, direction, "ceiling", 0.65) for direction in (FORWARD, TRAINING)),
    *(Target(ATTENTION, DOCUMENTS, direction, "case S4096-causal", 0.85) for direction in (FORWARD, TRAINING)),
    Target(LOSS, r"T2048x\w+", FORWARD, "ceiling", 1 / 1.1),
    Target(LOSS, r"T2048x\w+", TRAINING, "ceiling", 1 / 1.15),
    Target("paged_attention", ".*", FORWARD, "ceiling", 0.80),
    Target("fused_adamw", ".*", FORWARD, "ceiling", 0.85),
    *(Target(f"{NORMS}|{LINEAR}|{LOSS}", WHOLE, direction, "kernel", 0.9) for direction in (FORWARD, TRAINING)),
    *(Target(f"{ATTENTION}|fusion_rope", r"S\d+.*|B.*", way, "kernel", 0.9) for way in (FORWARD, TRAINING)),
    *(Target(f"{NORMS}|{LINEAR}", FEW, direction, "paddle", 1.0) for direction in (FORWARD, TRAINING)),
    *(Target(ATTENTION, r"Sq(1|16|64)-.*", direction, "paddle", 1.0) for direction in (FORWARD, TRAINING)),
)


def num_threads() -> int:
    count: int = runtime.native().num_threads()
    return count


def stream(bytes_read: int, bytes_written: int) -> dict[str, Call]:
    """Reads so much and writes so much, with ordinary stores and past the caches: the better is the ceiling."""
    native = runtime.native()
    source, target = aligned(bytes_read), aligned(bytes_written)
    return {
        "": lambda: native.stream(source, target, False),
        ", non-temporal": lambda: native.stream(source, target, True),
    }


def aligned(num_bytes: int) -> Any:
    """Touched, and at a multiple of 64 bytes, as stores past the caches need."""
    whole = np.ones(num_bytes + 64, np.uint8)
    begin = -whole.ctypes.data % 64
    return whole[begin : begin + num_bytes // 4 * 4].view(np.int32)


def products(op: str, dims: Mapping[str, Any], dtype: str, *, apart: bool) -> tuple[dict[str, Call], float]:
    """By each library at hand, of the op's own size or of a standard one, and the FLOPs of each.

    apart: of those libraries that have threads of their own. They are timed in a process without Paddle's.
    """
    rows, k, n = product_size(op, dims)
    return library_products.calls(rows, k, n, dtype, apart), 2.0 * rows * k * n


def peaks(dtype: str) -> dict[str, tuple[Call, float]]:
    """Arithmetic in registers alone, in each dtype that a call in `dtype` may be multiplied in, and its FLOPs."""
    wanted = [each for each in library_products.arithmetic() if each in (dtype, library_products.FLOAT32)]
    return {each: peak(each) for each in wanted}


def peak(dtype: str) -> tuple[Call, float]:
    """A call as long as PEAK_S, whatever a turn of this processor does."""
    multiply, turns = runtime.native().multiply_in_registers, 1 << 18
    start = time.perf_counter()
    flops = multiply(dtype, turns)
    times = max(1, round(PEAK_S / (time.perf_counter() - start)))
    return functools.partial(multiply, dtype, turns * times), float(flops * times)


def product_size(op: str, dims: Mapping[str, Any]) -> tuple[int, int, int]:
    if op == LINEAR and dims["..."] >= FEW_ROWS:
        return dims["..."], dims["in_features"], dims["out_features"]
    if op == LOSS:
        return dims["..."], dims["hidden_size"], dims["vocab_size"]
    return STANDARD_PRODUCT


def prepared(op: str, arguments: dict[str, Any], training: bool, cost: Cost) -> Call:
    """The kernel over NumPy arrays, its results in one block of memory that every call uses again."""
    module = f"fusionkit_backends.cpu.{op}"
    forward, vjp = (
        kernel_function.resolve(f"{module}:{name}") if name else None for name in ("through_numpy", "vjp" * training)
    )
    made = forward(**arguments)
    grads = None if vjp is None else grad_outputs(op, made)
    arena = runtime.native().ResultArena(int(2 * cost.bytes_written) + (64 << 20))

    def run() -> object:
        with arena:
            if vjp is None:
                return forward(**arguments)
            if op not in GRADIENTS_WITH_FORWARD:
                forward(**arguments)
            return vjp(grads, **arguments)

    return run


def grad_outputs(op: str, made: Any) -> Any:
    """Ones; one or a tuple, as the op returns. The count of tokens has none."""
    if op == LOSS:
        return np.ones((), np.float32), None
    ones = tuple(np.ones(each.shape, each.dtype) for each in (made if isinstance(made, tuple) else (made,)))
    return ones if len(load_spec(op).outputs) > 1 and isinstance(made, tuple) else ones[0]

"""Every Triton kernel of the gpu backend compiles down to the cubin for sm_80 and sm_90, without a card: the programs
are those that the ops launch at Llama 2 13B's sizes, in each dtype and for the kinds of strides."""

from __future__ import annotations

import importlib
import pkgutil

import fusionkit_backends.gpu.kernels
import pytest
from fusionkit_backends.gpu.kernels import ahead_of_time
from triton.runtime.jit import JITFunction

from tests.gpu import launches
from tests.gpu.launches import empty

TOKENS, HIDDEN, INTERMEDIATE = 2048, 5120, 13824
LONG = 40000  # columns that no program holds


def swiglu(dtype):
    yield {"gate": empty(TOKENS, INTERMEDIATE, dtype=dtype), "up": empty(TOKENS, INTERMEDIATE, dtype=dtype)}
    both = empty(TOKENS, 2 * INTERMEDIATE, dtype=dtype)
    yield dict(zip(("gate", "up"), both.chunk(2, dim=-1), strict=True))


def fusion_rms_norm(dtype):
    for columns in (HIDDEN, 128, 13824, LONG):
        yield {"x": empty(TOKENS, columns, dtype=dtype), "weight": empty(columns, dtype=dtype)}
    yield {"x": empty(TOKENS, HIDDEN, dtype=dtype), "weight": empty(HIDDEN, dtype="float32")}


def fusion_add_rms_norm(dtype):
    for columns, other in ((HIDDEN, dtype), (HIDDEN, "float32"), (LONG, dtype)):
        x, residual = empty(TOKENS, columns, dtype=dtype), empty(TOKENS, columns, dtype=other)
        yield {"x": x, "residual": residual, "weight": empty(columns, dtype=dtype)}


CALLS = {"fusion_add_rms_norm": fusion_add_rms_norm, "fusion_rms_norm": fusion_rms_norm, "swiglu": swiglu}


@pytest.mark.parametrize("capability", launches.CARDS)
@pytest.mark.parametrize("dtype", launches.DTYPES)
@pytest.mark.parametrize("op", CALLS)
def test_kernels_compile_and_do_not_spill(op, dtype, capability):
    made = [each for arguments in CALLS[op](dtype) for each in launches.of_call(op, capability, arguments)]
    assert made
    for variant in ahead_of_time.variants(made, capability):
        used = ahead_of_time.resources(ahead_of_time.compiled(variant, capability))
        assert 0 < used.registers <= 255 and used.spilled_bytes == 0, (variant.key, used)


def test_every_kernel_is_compiled_here():
    """Those with a launch function of their own; functions that kernels inline are not launched."""
    launched = {
        each.kernel.__name__
        for op, calls in CALLS.items()
        for arguments in calls("bfloat16")
        for each in launches.of_call(op, 90, arguments)
    }
    declared = set()
    for module in pkgutil.iter_modules(fusionkit_backends.gpu.kernels.__path__):
        made = importlib.import_module(f"fusionkit_backends.gpu.kernels.{module.name}")
        declared |= {n for n, v in vars(made).items() if isinstance(v, JITFunction) and n.endswith("_kernel")}
    assert launched == declared

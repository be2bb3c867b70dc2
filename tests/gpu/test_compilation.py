"""Every Triton kernel of the gpu backend compiles down to the cubin for sm_80 and sm_90, without a card: the programs
are those that the ops launch at Llama 2 13B's sizes, in each dtype and for the kinds of strides."""

from __future__ import annotations

import importlib
import json
import pkgutil

import fusionkit_backends.gpu.kernels
import pytest
import torch
from fusionkit_backends.gpu.kernels import ahead_of_time
from triton.runtime.jit import JITFunction

from tests.gpu import launches
from tests.gpu.attention_calls import flash_attention, paged_attention
from tests.gpu.launches import empty

TOKENS, HIDDEN, INTERMEDIATE = 2048, 5120, 13824
LONG = 40000  # columns that no program holds
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}  # of a block, as the CUDA programming guide says


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


def fusion_rope(dtype):
    cos, sin = (empty(4096, 64, dtype="float32", grad=False) for _ in "cs")
    for heads, tokens in ((40, TOKENS), (8, 1)):
        q, k = empty(1, tokens, 40, 128, dtype=dtype), empty(1, tokens, heads, 128, dtype=dtype)
        yield {"q": q, "k": k, "cos": cos, "sin": sin}
    position_ids = torch.empty((1, TOKENS), dtype=torch.int64, device="meta")
    q, k = (empty(1, TOKENS, 40, 128, dtype=dtype) for _ in "qk")
    for interleaved in (False, True):
        yield {"q": q, "k": k, "cos": cos, "sin": sin, "position_ids": position_ids, "interleaved": interleaved}


def fused_linear_cross_entropy(dtype):
    labels = torch.empty(TOKENS, dtype=torch.int64, device="meta")
    yield {"x": empty(TOKENS, HIDDEN, dtype=dtype), "weight": empty(HIDDEN, 32000, dtype=dtype), "labels": labels}


OPS = (
    fusion_add_rms_norm,
    fusion_rms_norm,
    fusion_rope,
    fused_linear_cross_entropy,
    swiglu,
    flash_attention,
    paged_attention,
)
CALLS = {calls.__name__: calls for calls in OPS}


def in_sample(op, dtype, number, capability):
    """In bfloat16 every call, in the other dtypes an op's first, each for one of the cards in turn. Attention's
    programs in float16 are those in bfloat16: see attention_calls.py."""
    turn = list(CALLS).index(op) + number + (dtype == "float16")
    wanted = number == 0 and (dtype, op.endswith("attention")) != ("float16", True)
    return (dtype == "bfloat16" or wanted) and capability == list(launches.CARDS)[turn % 2]


def numbered_calls():
    """One test for each call, so that two workers share them and none holds the other up for a minute."""
    for op, calls in CALLS.items():
        for dtype in launches.DTYPES:
            for number, _ in enumerate(calls(dtype)):
                for capability in launches.CARDS:
                    yield op, dtype, number, capability


def marked(*call):
    return pytest.param(*call, id="-".join(map(str, call)), marks=() if in_sample(*call) else pytest.mark.full)


@pytest.mark.parametrize("op, dtype, number, capability", [marked(*call) for call in numbered_calls()])
def test_kernels_compile_and_do_not_spill(op, dtype, number, capability):
    """Programs that another call has compiled come from Triton's cache on disk, which the workers share."""
    made = launches.of_call(op, capability, list(CALLS[op](dtype))[number])
    assert made
    for variant in ahead_of_time.variants(made, capability):
        used = ahead_of_time.resources(ahead_of_time.compiled(variant, capability))
        assert 0 < used.registers <= 255 and used.spilled_bytes == 0, (variant.key, used)
        assert used.shared_bytes <= SHARED_BYTES[capability], (variant.key, used)


def test_the_sample_has_every_call_and_every_dtype_for_every_card():
    sample = [call for call in numbered_calls() if in_sample(*call)]
    calls = {(op, number) for op, _, number, _ in numbered_calls()}
    assert {(op, number) for op, dtype, number, _ in sample if dtype == "bfloat16"} == calls
    assert {(dtype, card) for _, dtype, _, card in sample} == {(d, c) for d in launches.DTYPES for c in launches.CARDS}


@pytest.mark.parametrize("op", CALLS)
def test_hooks_of_triton_take_the_constants(op):
    """Triton writes them as JSON for its hooks, such as `warmup.compilations`."""
    for arguments in CALLS[op]("bfloat16"):
        for each in launches.of_call(op, 90, arguments):
            json.dumps(each.constants)


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

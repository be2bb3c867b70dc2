"""The limits of xpu and gpu, stated a second time.

No card and no emulated device contradicts these two, and the generated boundary cases follow the declaration: a wrong
number there would pass. The calls below were written from the sources that they name, not from the declaration.
"""

from __future__ import annotations

import pytest

import fusionkit as fk
from fusionkit import arguments, registry, select
from fusionkit.call import describe
from fusionkit.capability import ForwardOnly, OneOf
from fusionkit.spec import GroupSpec, TensorSpec
from tests.boundaries import is_of_the_arguments

BACKENDS = {backend.name: backend for backend in registry.loaded()}
FLOATING = ("float32", "bfloat16", "float16")


def spec(*shape, dtype="bfloat16"):
    return TensorSpec(shape, dtype)


def attention(head_dim=64, dtype="bfloat16", **kwargs):
    q, k = spec(2, 5, 4, head_dim, dtype=dtype), spec(2, 5, 2, head_dim, dtype=dtype)
    return "flash_attention", {"q": q, "k": k, "v": k, **kwargs}


def paged(head_dim=64, dtype="bfloat16", **kwargs):
    q, k = spec(2, 4, head_dim, dtype=dtype), spec(2, 2, head_dim, dtype=dtype)
    cache, row = spec(3, 2, 16, head_dim, dtype=dtype), spec(1, dtype="int32")
    lengths = dict.fromkeys(("seq_lens_encoder", "seq_lens_decoder", "seq_lens_this_time"), row)
    tables = {"block_tables": spec(1, 3, dtype="int32")}
    blocks = {"key_cache": cache, "value_cache": cache}
    return "paged_attention", {"q": q, "k": k, "v": k, **blocks, **tables, **lengths, **kwargs}


def cache_of_codes():
    cache, scales = spec(3, 2, 16, 64, dtype="int8"), spec(3, 2, 16, dtype="float32")
    return {"key_cache": cache, "value_cache": cache, "key_scales": scales, "value_scales": scales}


def norm(dtype):
    return "fusion_rms_norm", {"x": spec(3, 64, dtype=dtype), "weight": spec(64, dtype=dtype)}


def add_norm(dtype):
    x = spec(3, 64, dtype=dtype)
    return "fusion_add_rms_norm", {"x": x, "residual": x, "weight": spec(64, dtype=dtype)}


def rope(dtype):
    q, table = spec(2, 5, 4, 64, dtype=dtype), spec(9, 32, dtype="float32")
    return "fusion_rope", {"q": q, "k": q, "cos": table, "sin": table}


def gated(dtype):
    return "swiglu", {"gate": spec(3, 8, dtype=dtype), "up": spec(3, 8, dtype=dtype)}


def product(dtype="bfloat16", packed_by=None):
    weight = TensorSpec((64, 16), dtype, packed_by=packed_by)
    return "fused_linear", {"x": spec(3, 64, dtype=dtype), "weight": weight}


def loss(dtype, **kwargs):
    labels = spec(3, dtype="int64")
    weight = spec(64, 16, dtype=dtype)
    return "fused_linear_cross_entropy", {"x": spec(3, 64, dtype=dtype), "weight": weight, "labels": labels, **kwargs}


def each_dtype(backend, framework, make):
    return [(backend, framework, make(dtype), True) for dtype in FLOATING]


STATED = [
    # paddle/nn/functional/sdpa.py of Paddle 3.3: head_dim <= 256, a multiple of 8, float16 or bfloat16, its own scale.
    *(("gpu", "paddle", attention(head_dim), True) for head_dim in (8, 72, 128, 256)),
    *(("gpu", "paddle", attention(head_dim), False) for head_dim in (4, 12, 100, 264, 512)),
    ("gpu", "paddle", attention(dtype="float16"), True),
    ("gpu", "paddle", attention(dtype="float32"), False),
    ("gpu", "paddle", attention(64, scale=0.125), True),
    ("gpu", "paddle", attention(64, scale=0.25), False),
    ("gpu", "paddle", attention(return_lse=True), False),
    # Our Triton kernels hold a whole head in a tile: at most 256 wide.
    *(("gpu", "torch", make(head_dim), True) for make in (attention, paged) for head_dim in (1, 63, 80, 256)),
    *(("gpu", "torch", make(head_dim), False) for make in (attention, paged) for head_dim in (257, 512)),
    *each_dtype("gpu", "torch", lambda dtype: attention(dtype=dtype)),
    *each_dtype("gpu", "torch", lambda dtype: paged(dtype=dtype)),
    ("gpu", "torch", attention(scale=0.25, return_lse=True), True),
    *(case for make in (norm, add_norm, rope, gated, product) for case in each_dtype("gpu", "paddle", make)),
    *(case for make in (norm, add_norm, rope, gated, product, loss) for case in each_dtype("gpu", "torch", make)),
    *(("gpu", framework, product(packed_by="cpu"), False) for framework in ("paddle", "torch")),
    ("gpu", "torch", paged(window=8), False),
    ("gpu", "torch", paged(**cache_of_codes()), False),
    ("gpu", "torch", loss("bfloat16", group=GroupSpec(2)), False),
    ("gpu", "paddle", paged(), False),
    ("gpu", "paddle", loss("bfloat16"), False),
    # paddle.nn.functional.flash_attention on a Paddle built for XPU: 16 bits, its own scale, the output alone.
    *(("xpu", "paddle", attention(head_dim), True) for head_dim in (1, 60, 64, 128, 512)),
    ("xpu", "paddle", attention(dtype="float16"), True),
    ("xpu", "paddle", attention(dtype="float32"), False),
    ("xpu", "paddle", attention(64, scale=0.125), True),
    ("xpu", "paddle", attention(64, scale=0.25), False),
    ("xpu", "paddle", attention(return_lse=True), False),
    *(case for make in (norm, rope) for case in each_dtype("xpu", "paddle", make)),
]


def described(backend, framework, op, made):
    call = describe(fk.Op(op).spec, *arguments.bind(fk.Op(op).spec, (), made), training=False)
    call.framework, call.device = framework, f"{backend}:0"
    return call


def name(case):
    backend, framework, (op, made), accepted = case
    first = next(iter(made.values()))
    values = [f"{key}={value}" for key, value in made.items() if not isinstance(value, TensorSpec)]
    return "-".join([backend, framework, op, str(first), *values, "in" if accepted else "out"])


@pytest.mark.parametrize("case", STATED, ids=name)
def test_the_declaration_says_what_the_source_says(case):
    backend, framework, (op, made), accepted = case
    kernel = BACKENDS[backend].kernels[op].serving(framework)
    assert bool(select.judge_kernel(kernel, described(backend, framework, op, made))) == accepted


def is_the_ops(op, predicate):
    """The op itself takes no other dtype, or has no gradient."""
    if isinstance(predicate, ForwardOnly):
        return fk.Op(op).spec.reference_vjp is None
    return isinstance(predicate, OneOf) and {*predicate.allowed} >= {*FLOATING}


KERNELS = [
    (backend, framework, op, kernel.serving(framework))
    for backend in ("gpu", "xpu")
    for op, kernel in BACKENDS[backend].kernels.items()
    for framework in ("paddle", "torch")
    if framework in kernel.serving(framework).functions
]
LIMITS = [
    (backend, framework, op, predicate)
    for backend, framework, op, kernel in KERNELS
    for predicate in select.conditions(kernel, op)
    if is_of_the_arguments(predicate) and not is_the_ops(op, predicate)
]


@pytest.mark.parametrize("backend, framework, op, predicate", LIMITS, ids=lambda part: str(part))
def test_every_limit_is_stated_here(backend, framework, op, predicate):
    refused = [
        made for *where, (name, made), accepted in STATED if [*where, name] == [backend, framework, op] and not accepted
    ]
    assert any(not predicate.judge(described(backend, framework, op, made)) for made in refused)


@pytest.mark.parametrize("backend, framework, op", [each[:3] for each in KERNELS])
def test_every_dtype_is_stated_here(backend, framework, op):
    taken = BACKENDS[backend].kernels[op].serving(framework).dtypes
    stated = [
        (next(iter(made.values())).dtype, accepted)
        for *where, (name, made), accepted in STATED
        if [*where, name] == [backend, framework, op]
    ]
    assert {dtype for dtype, accepted in stated if accepted} == {*taken}
    assert {dtype for dtype, accepted in stated if not accepted} >= {*FLOATING} - {*taken}

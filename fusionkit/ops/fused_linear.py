"""fused_linear: the spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fusionkit.dtypes import FLOATING
from fusionkit.spec import (
    Array,
    Benchmark,
    Case,
    Cost,
    Epsilons,
    Input,
    InvalidCase,
    OpSpec,
    Output,
    Rounding,
    Tolerance,
    exact,
)


def fused_linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """Matrix product over the last axis, plus a bias.

        y = x @ weight + bias

    Args:
        x: [..., in_features], float32 / bfloat16 / float16.
        weight: [in_features, out_features], dtype of x, or float32: a float32 weight is rounded to x's dtype for the
            product, while its gradient stays float32. Or a `PackedWeight` of that shape, which has no gradient; one of
            int8 or int4 stands for code * scale + minimum, unrounded, and x may have any of its dtypes. Through such a
            one x and bias have gradients, dx = dy @ weight^T in float32; through one of floats there are none. One
            with `activations="int8"` rounds x to int8 before the product, as `fusionkit.rounded_activations` says, and
            gradients pass that by.
            `fusionkit.quantized_arrays.QuantizedArrays` stand for the same, without gradients. They alone may stand in
            a traced program.
        bias: [out_features], dtype of x, or float32; None for no bias.

    Returns:
        [..., out_features], dtype of x. Accumulated in float32; one rounding, after the bias. With `activations="int8"`
        the rounding of x changes y by at most the sum over runs of 32 of (largest |x|) * (sum of |weight|) / 254.

    Raises:
        ValueError: x's last axis is not in_features, bias is not [out_features], or a dtype is not as above.

    Source: the linear layer, with Paddle's weight layout.
    """


def reference(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    rounding: Rounding = exact,
    operand: Rounding = exact,
    activations: Rounding = exact,
) -> Array:
    y = rounding(activations(x) @ operand(weight))
    return y if bias is None else rounding(y + bias)


def reference_vjp(
    grad_outputs: Array,
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    rounding: Rounding = exact,
    operand: Rounding = exact,
) -> dict[str, Array]:
    """Rounding the weight to the product's dtype is the identity to its gradient."""
    in_features, out_features = weight.shape
    dy = grad_outputs.reshape(-1, out_features)
    gradients = {
        "x": rounding(grad_outputs @ operand(weight).T),
        "weight": rounding(x.reshape(-1, in_features).T @ dy),
    }
    if bias is not None:
        gradients["bias"] = rounding(np.sum(dy, axis=0))
    return gradients


def case(
    *rows: int,
    k: int,
    n: int,
    bias: bool = True,
    name: str = "",
    keep_float32: tuple[str, ...] = (),
    quantized: Mapping[str, Any] | None = None,
) -> Case:
    def arguments(rng: np.random.Generator) -> dict[str, Any]:
        return {
            "x": rng.standard_normal((*rows, k)),
            "weight": rng.standard_normal((k, n)) / np.sqrt(k),
            "bias": rng.standard_normal(n) if bias else None,
        }

    label = name or "x".join([*(f"T{size}" for size in rows), f"K{k}", f"N{n}"]) + ("" if bias else "-no-bias")
    return Case(label, arguments, llama=k >= 4096, keep_float32=keep_float32, quantized=quantized or {})


def quantized(
    rows: int,
    k: int,
    n: int,
    dtype: str,
    group_size: int | None,
    symmetric: bool = True,
    activations: str | None = None,
) -> Case:
    """Four rows are a tile on cpu, or eight of x in int8, and those that are left over go one by one or in smaller
    tiles."""
    groups = "per-column" if group_size is None else f"groups-of-{group_size}"
    remarks = ("" if symmetric else "-minimums") + (f"-x-in-{activations}" if activations else "")
    name = f"T{rows}xK{k}xN{n}-{dtype}-{groups}{remarks}"
    how = {"dtype": dtype, "group_size": group_size, "symmetric": symmetric, "activations": activations}
    return case(rows, k=k, n=n, bias=rows % 2 == 1, name=name, quantized=how)


def invalid(name: str, match: str, error: type[Exception] = ValueError, **arguments: Any) -> InvalidCase:
    valid = {"x": np.ones((2, 8)), "weight": np.ones((8, 4)), "bias": np.ones(4)}
    return InvalidCase(name, lambda rng: {**valid, **arguments}, error, match)


def cost(dims: Mapping[str, Any], itemsize: int, training: bool) -> Cost:
    """The product alone, and with the backward two more; the bias counts as if it were there. `weight_bytes` in dims is
    what a quantized weight takes, `QuantizedWeight.num_bytes`. It is frozen: the backward is one product, which reads
    the codes again and no x."""
    rows, k, n = dims["..."], dims["in_features"], dims["out_features"]
    read, written = rows * k + k * n + n, rows * n
    if not training:
        weight_bytes = dims.get("weight_bytes", itemsize * k * n)
        return Cost(2.0 * rows * k * n, itemsize * (rows * k + n) + weight_bytes, itemsize * written)
    if "weight_bytes" in dims:
        activations = rows * k + n + rows * n
        return Cost(4.0 * rows * k * n, itemsize * activations + 2 * dims["weight_bytes"], itemsize * activations)
    return Cost(6.0 * rows * k * n, itemsize * (2 * read + written), itemsize * (written + read))


def timed(rows: int, k: int, n: int) -> list[Benchmark]:
    """The weight in x's dtype, as a float32 master weight, and packed."""
    name = f"T{rows}xK{k}xN{n}"
    plain = case(rows, k=k, n=n, bias=False, name=name)
    master = case(rows, k=k, n=n, bias=False, name=f"{name}-float32-weight", keep_float32=("weight",))
    packed = case(rows, k=k, n=n, bias=False, name=f"{name}-packed")
    return [Benchmark(plain), Benchmark(master, ("bfloat16",)), Benchmark(packed, packed="weight")]


def timed_quantized(
    rows: int, k: int, n: int, dtype: str, group_size: int | None, activations: str | None = None
) -> Benchmark:
    """A symmetric pack with float16 scales, read from memory as in decoding, where each weight is read once a token."""
    num_bytes = {"int8": 1.0, "int4": 0.5}[dtype] * k * n + 2.0 * n * -(-k // (group_size or k))
    made = quantized(rows, k, n, dtype, group_size, activations=activations)
    return Benchmark(made, ("bfloat16",), {"weight_bytes": num_bytes}, packed="weight", cold=True)


DECODED = ((5120, 5120), (5120, 13824), (13824, 5120))  # the weights of Llama 2 13B

BENCHMARKS = (
    *timed(1024, 5120, 5120),
    *timed(1024, 5120, 13824),
    *timed(1024, 13824, 5120),
    *(benchmark for rows in (1, 8, 64) for benchmark in timed(rows, 5120, 5120)),
    *(timed_quantized(1, k, n, dtype, 32) for k, n in DECODED for dtype in ("int8", "int4")),
    *(timed_quantized(1, 5120, 13824, *each) for each in (("int8", None), ("int4", 128), ("int4", None))),
    *(timed_quantized(rows, 5120, 13824, dtype, 32) for rows in (4, 16, 512) for dtype in ("int8", "int4")),
    *(timed_quantized(rows, 5120, 13824, "int4", 32, "int8") for rows in (1, 4, 16, 512)),
)

spec = OpSpec(
    signature=fused_linear,
    inputs=(
        Input("x", "... in_features", FLOATING),
        Input("weight", "in_features out_features", ("x", "float32"), packable=True),
        Input("bias", "out_features", ("x", "float32"), optional=True),
    ),
    outputs=(Output("y", "... out_features", "x"),),
    reference=reference,
    reference_vjp=reference_vjp,
    cases=(
        *(case(3, k=size, n=size) for size in (1, 15, 16, 17, 31, 33, 127)),
        case(1, k=1, n=33),
        case(1, k=33, n=1),
        case(1, k=64, n=48),
        case(17, k=31, n=15, bias=False),
        case(67, k=13, n=7),
        case(k=37, n=11, name="K37xN11"),
        case(2, 5, k=48, n=32),
        case(0, k=16, n=8, name="no-rows"),
        case(5, k=33, n=17, name="float32-weight", keep_float32=("weight",)),
        case(5, k=33, n=17, name="float32-bias", keep_float32=("bias",)),
        case(5, k=33, n=17, name="float32-weight-and-bias", keep_float32=("weight", "bias")),
        case(7, k=5120, n=640, bias=False, name="T7xK5120xN640"),
        quantized(1, 129, 70, "int8", 32),
        quantized(5, 97, 64, "int8", None),
        quantized(3, 67, 65, "int8", 16, symmetric=False),
        quantized(13, 130, 131, "int8", 64),
        quantized(1, 131, 66, "int4", 32, symmetric=False),
        quantized(4, 257, 63, "int4", 64),
        quantized(8, 37, 5, "int4", None, symmetric=False),
        quantized(9, 300, 129, "int4", 128, symmetric=False),
        quantized(1, 1, 1, "int4", 32),
        quantized(15, 130, 131, "int8", 32, activations="int8"),
        quantized(3, 67, 65, "int8", 16, symmetric=False, activations="int8"),
        quantized(1, 131, 66, "int4", 32, symmetric=False, activations="int8"),
        quantized(15, 97, 64, "int4", 16, activations="int8"),
        quantized(17, 300, 129, "int4", None, activations="int8"),
    ),
    invalid_cases=(
        invalid("weight-in-features", r"weight must be .* with in_features = 8", weight=np.ones((7, 4))),
        invalid("weight-transposed", r"weight must be \[in_features, out_features\]", weight=np.ones((4, 8))),
        invalid("weight-rank", r"weight must be \[in_features, out_features\]", weight=np.ones(8)),
        invalid("weight-integer", "weight must be of dtype", weight=np.ones((8, 4), dtype=np.int8)),
        invalid("weight-none", "weight must be a tensor", TypeError, weight=None),
        invalid("bias-length", r"bias must be \[out_features\] with out_features = 4", bias=np.ones(8)),
        invalid("bias-rank", r"bias must be \[out_features\]", bias=np.ones((1, 4))),
        invalid("bias-number", "bias must be a tensor or None", TypeError, bias=1.0),
        invalid("x-scalar", r"x must be \[\.\.\., in_features\]", x=np.ones(())),
        invalid("x-integer", "x must be of dtype float32, bfloat16 or float16", x=np.ones((2, 8), dtype=np.int64)),
    ),
    tolerance=Tolerance(
        forward=Epsilons(
            {"float32": 128, "bfloat16": 0.51, "float16": 0.52},
            "one running float32 sum of K products is a random walk of K roundings with a standard deviation of about "
            "0.15 sqrt(K) epsilons of the root mean square: 11 at K = 5120, where 48 to 77 was measured among 4480 "
            "elements (the walk's own size varies). In 16 bits that is 0.002 or 0.016 beside the output's rounding. A "
            "quantized pack may round bfloat16 x by 2^-16 of its norm, 0.002 epsilons a standard deviation of y. The "
            "reference rounds x to int8 itself, to the bit, where a pack says so.",
        ),
        backward=Epsilons(
            {"float32": 128, "bfloat16": 0.51, "float16": 0.52},
            "the same sums, over out_features for x and over the rows for weight and bias. A quantized pack's values "
            "are float32, rounded once at most.",
        ),
    ),
    cost=cost,
    benchmarks=BENCHMARKS,
    amp="low",
    source="the linear layer of Llama 2, in Paddle's layout [in_features, out_features]",
    stored={"operand": "x"},
)

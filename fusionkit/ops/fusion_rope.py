"""fusion_rope: the spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fusionkit.dtypes import FLOATING, INTEGER
from fusionkit.spec import (
    UNKNOWN,
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


def fusion_rope(q: Any, k: Any, cos: Any, sin: Any, *, position_ids: Any = None, interleaved: bool = False) -> Any:
    """Rotary position embedding of queries and keys.

        (y1, y2) = (x1 cos - x2 sin, x2 cos + x1 sin),  cos and sin taken at the token's position

    Args:
        q: [batch_size, seq_len, num_heads, head_dim], float32 / bfloat16 / float16; head_dim even.
        k: [batch_size, seq_len, num_key_value_heads, head_dim], dtype of q.
        cos: [max_position, head_dim / 2] float32; never cast. Not differentiated.
        sin: as cos.
        position_ids: [batch_size, seq_len] int32 / int64 in [0, max_position); default 0..seq_len-1.
        interleaved: False pairs element i with i + head_dim / 2 (Llama); True pairs 2i with 2i + 1.

    Returns:
        (q, k) rotated, shapes and dtypes as given. Arithmetic in float32; one rounding, at the output.

    Raises:
        ValueError: cos or sin is not [max_position, head_dim / 2] float32, a position has no row in them.

    Source: Su et al. 2021, arXiv:2104.09864, eq. 34; the paper pairs neighbours, Llama's released weights the halves.
    """


def angles(table: Array, x: Array, position_ids: Array | None) -> Array:
    """[batch_size or 1, seq_len, 1, head_dim / 2]: the table's rows for each token."""
    rows = table[None, : x.shape[1]] if position_ids is None else table[position_ids]
    return rows[:, :, None, :]


def rotate(x: Array, cos: Array, sin: Array, interleaved: bool, rounding: Rounding) -> Array:
    half = x.shape[-1] // 2
    first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    rotated = (
        rounding(rounding(first * cos) - rounding(second * sin)),
        rounding(rounding(second * cos) + rounding(first * sin)),
    )
    return np.stack(rotated, axis=-1).reshape(x.shape) if interleaved else np.concatenate(rotated, axis=-1)


def reference(
    q: Array,
    k: Array,
    cos: Array,
    sin: Array,
    *,
    position_ids: Array | None = None,
    interleaved: bool = False,
    rounding: Rounding = exact,
) -> tuple[Array, Array]:
    cos, sin = angles(cos, q, position_ids), angles(sin, q, position_ids)
    return rotate(q, cos, sin, interleaved, rounding), rotate(k, cos, sin, interleaved, rounding)


def reference_vjp(
    grad_outputs: tuple[Array, Array],
    q: Array,
    k: Array,
    cos: Array,
    sin: Array,
    *,
    position_ids: Array | None = None,
    interleaved: bool = False,
    rounding: Rounding = exact,
) -> dict[str, Array]:
    """The rotation by the negative angle."""
    cos, sin = angles(cos, q, position_ids), angles(sin, q, position_ids)
    dq, dk = (rotate(grad, cos, -sin, interleaved, rounding) for grad in grad_outputs)
    return {"q": dq, "k": dk}


def tables(max_position: int, head_dim: int) -> dict[str, Array]:
    """Llama's: base 10000."""
    frequencies = 10000.0 ** (-np.arange(0, head_dim, 2) / head_dim)
    angle = np.outer(np.arange(max_position), frequencies)
    return {"cos": np.cos(angle), "sin": np.sin(angle)}


def case(
    name: str,
    *,
    batch_size: int = 2,
    seq_len: int = 5,
    num_heads: int = 3,
    num_key_value_heads: int = 3,
    head_dim: int = 16,
    max_position: int = 37,
    positions: type[np.integer[Any]] | None = None,
    llama: bool = False,
    **kwargs: Any,
) -> Case:
    def arguments(rng: np.random.Generator) -> dict[str, Any]:
        made = {
            "q": rng.standard_normal((batch_size, seq_len, num_heads, head_dim)),
            "k": rng.standard_normal((batch_size, seq_len, num_key_value_heads, head_dim)),
            **tables(max_position, head_dim),
            **kwargs,
        }
        if positions is not None:
            made["position_ids"] = rng.integers(0, max_position, (batch_size, seq_len)).astype(positions)
        return made

    return Case(name, arguments, llama)


# Two packed documents: positions start again.
PACKED = np.array([[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]], dtype=np.int64)

CASES = (
    *(case(f"D{dim}", head_dim=dim) for dim in (2, 6, 16, 30, 32, 34, 62, 66, 128)),
    *(case(f"D{dim}-interleaved", head_dim=dim, interleaved=True) for dim in (2, 6, 16, 30, 32, 34, 62, 66, 128)),
    case("D64", head_dim=64),
    case("D64-GQA-4:2-positions", head_dim=64, num_heads=4, num_key_value_heads=2, positions=np.int64),
    case("D64-no-tokens", head_dim=64, seq_len=0),
    case("S1", seq_len=1),
    case("S37-whole-table", seq_len=37),
    case("GQA-4:1", num_heads=4, num_key_value_heads=1),
    case("GQA-4:1-interleaved", num_heads=4, num_key_value_heads=1, interleaved=True),
    case("positions-int32", positions=np.int32),
    case("positions-int64", positions=np.int64),
    case("positions-interleaved", positions=np.int64, interleaved=True),
    case("positions-beyond-seq-len", seq_len=1, batch_size=7, positions=np.int64),
    case("positions-packed", position_ids=PACKED),
    case("no-tokens", seq_len=0),
    case("no-batch", batch_size=0, positions=np.int64),
    case(
        "B1xS1024xH40xD128",
        batch_size=1,
        seq_len=1024,
        num_heads=40,
        num_key_value_heads=40,
        head_dim=128,
        max_position=4096,
        llama=True,
    ),
)


def invalid(name: str, match: str, error: type[Exception] = ValueError, **arguments: Any) -> InvalidCase:
    valid = {"q": np.ones((2, 3, 4, 8)), "k": np.ones((2, 3, 2, 8)), **tables(5, 8)}
    return InvalidCase(name, lambda rng: {**valid, **arguments}, error, match)


def positions(*rows: list[int]) -> Array:
    return np.array(rows, dtype=np.int64)


INVALID_CASES = (
    invalid("q-rank", r"q must be \[batch_size, seq_len, num_heads, head_dim\]", q=np.ones((3, 4, 8))),
    invalid("q-integer", "q must be of dtype float32, bfloat16 or float16", q=np.ones((2, 3, 4, 8), dtype=np.int64)),
    invalid("k-length", "k must be .* with seq_len = 3", k=np.ones((2, 4, 2, 8))),
    invalid("k-head-dim", "k must be .* with head_dim = 8", k=np.ones((2, 3, 2, 6))),
    invalid("k-none", "k must be a tensor", TypeError, k=None),
    invalid("head-dim-odd", "q must be of even head_dim", q=np.ones((2, 3, 4, 7)), k=np.ones((2, 3, 2, 7))),
    invalid("cos-width", "cos must be of half_dim = 4", cos=np.ones((5, 8)), sin=np.ones((5, 8))),
    invalid("cos-rank", r"cos must be \[max_position, half_dim\]", cos=np.ones((1, 5, 1, 4))),
    invalid("sin-rows", "sin must be .* with max_position = 5", sin=np.ones((6, 4))),
    invalid("table-short", "cos must be of at least 3 rows", cos=np.ones((2, 4)), sin=np.ones((2, 4))),
    invalid("positions-shape", "position_ids must be .* with seq_len = 3", position_ids=positions([0, 1], [0, 1])),
    invalid("positions-float", "position_ids must be of dtype int32 or int64", position_ids=np.ones((2, 3))),
    invalid("positions-beyond", r"position_ids must be in \[0, 5\)", position_ids=positions([0, 1, 2], [3, 4, 5])),
    invalid("positions-negative", r"position_ids must be in \[0, 5\)", position_ids=positions([0, -1, 2], [0, 1, 2])),
)


def cost(dims: Mapping[str, Any], itemsize: int, training: bool) -> Cost:
    """Four products and two sums a pair of elements; a table row is read once a position, not once a head. The backward
    is the inverse rotation of the gradients."""
    tokens = dims["batch_size"] * dims["seq_len"]
    elements = tokens * (dims["num_heads"] + dims["num_key_value_heads"]) * dims["head_dim"]
    tables = 2 * 4 * min(tokens, dims["max_position"]) * dims["half_dim"]
    passes = 2 if training else 1
    return Cost(passes * 3.0 * elements, passes * (itemsize * elements + tables), passes * itemsize * elements)


def check(call: Any) -> None:
    head_dim, half_dim = call.value("head_dim"), call.value("half_dim")
    if head_dim != UNKNOWN:
        call.require(head_dim % 2 == 0 and head_dim > 0, "q", "of even head_dim, at least 2", head_dim)
        fits = half_dim in (UNKNOWN, head_dim // 2)
        call.require(fits, "cos", f"of half_dim = {head_dim // 2}", half_dim, f"head_dim is {head_dim}")
    seq_len, max_position = call.value("seq_len"), call.value("max_position")
    if UNKNOWN not in (seq_len, max_position) and not call.present("position_ids"):
        rule = f"of at least {seq_len} rows without position_ids"
        call.require(seq_len <= max_position, "cos", rule, max_position, f"seq_len is {seq_len}")


ROTATION = Epsilons(
    {"float32": 2, "bfloat16": 0.51, "float16": 0.51},
    "two products and a sum, each rounded to half an epsilon, of a pair up to four root mean squares long. In 16 bits "
    "only the output's rounding is visible.",
)

spec = OpSpec(
    signature=fusion_rope,
    inputs=(
        Input("q", "batch_size seq_len num_heads head_dim", FLOATING),
        Input("k", "batch_size seq_len num_key_value_heads head_dim", ("q",)),
        Input("cos", "max_position half_dim", ("float32",), differentiable=False),
        Input("sin", "max_position half_dim", ("float32",), differentiable=False),
        Input("position_ids", "batch_size seq_len", INTEGER, optional=True, differentiable=False),
    ),
    outputs=(
        Output("q", "batch_size seq_len num_heads head_dim", "q"),
        Output("k", "batch_size seq_len num_key_value_heads head_dim", "k"),
    ),
    reference=reference,
    reference_vjp=reference_vjp,
    cases=CASES,
    benchmarks=(
        Benchmark(
            case(
                "B1xS2048xH40xD128",
                batch_size=1,
                seq_len=2048,
                num_heads=40,
                num_key_value_heads=40,
                head_dim=128,
                max_position=4096,
            )
        ),
    ),
    invalid_cases=INVALID_CASES,
    tolerance=Tolerance(
        forward=ROTATION,
        backward=ROTATION,
    ),
    cost=cost,
    amp="low",
    source="Su et al. 2021, arXiv:2104.09864, eq. 34",
    check=check,
)

"""The Triton kernels beyond the specs' cases, in Triton's interpreter: strides, long rows, chunks, wrong values and
arguments, planted mistakes."""

from __future__ import annotations

import pytest

from fusionkit.ops import load_spec
from tests.extreme_values import EXTREMES

ROW_OPS = {
    "fusion_rms_norm": "B2xT5xH48",
    "fusion_add_rms_norm": "B2xT5xH48",
    "swiglu": "B2xT5xI48",
    "fused_linear": "T2xT5xK48xN32",
    "fused_linear_cross_entropy": "B2xS5xH16xV97",
    "fusion_rope": "positions-int64",
}
ROPE_INTERLEAVED = ("fusion_rope", "positions-interleaved")


def checks(name):
    return f"tests.gpu.checks:{name}"


@pytest.mark.parametrize("where", ["spread", "reversed"])
@pytest.mark.parametrize("op, case", [*ROW_OPS.items(), ROPE_INTERLEAVED])
def test_strides_do_not_matter(op, case, where, interpreter):
    interpreter(call=checks("strides_do_not_matter"), op=op, case=case, where=where)


def test_halves_of_one_tensor(interpreter):
    interpreter(call=checks("halves_of_one_tensor"))


@pytest.mark.parametrize(
    "columns", [8193, 16385]
)  # one more than a program holds, in the backward and the forward pass
@pytest.mark.parametrize("op", ["fusion_rms_norm", "fusion_add_rms_norm"])
def test_long_rows(op, columns, interpreter):
    interpreter(call=checks("long_rows"), op=op, columns=columns)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("keep_float32", [False, True])
def test_loss_by_chunks(dtype, keep_float32, interpreter):
    interpreter(call=checks("loss_by_chunks"), dtype=dtype, keep_float32=keep_float32)


@pytest.mark.parametrize(
    "name",
    [
        "gradients_twice",
        "one_output_alone",
        "wrong_values_are_not_read",
        "heads_far_apart",
        "rows_without_columns",
        "repeats_bit_by_bit",
    ],
)
def test_holds(name, interpreter):
    interpreter(call=checks(name))


@pytest.mark.parametrize("op, case", [(op, case.name) for op in ROW_OPS for case in load_spec(op).invalid_cases])
def test_wrong_arguments_get_the_specs_error(op, case, interpreter):
    interpreter(call=checks("refused"), op=op, case=case)


@pytest.mark.parametrize(
    "op, name, dtype",
    [(e.op, e.case.name, dtype) for e in EXTREMES if e.op in ROW_OPS for dtype in e.dtypes],
)
def test_extreme_values(op, name, dtype, interpreter):
    interpreter(call=checks("extreme_value"), op=op, name=name, dtype=dtype)


PLANTED = {op: case for op, case in ROW_OPS.items() if op != "fused_linear"}  # which has no kernel of ours


@pytest.mark.parametrize("mistake", ["zeros", "two percent"])
@pytest.mark.parametrize("op", PLANTED)
def test_a_planted_mistake_fails_parity(op, mistake, interpreter):
    interpreter(call=checks("mistake_fails_parity"), op=op, case=PLANTED[op], mistake=mistake)

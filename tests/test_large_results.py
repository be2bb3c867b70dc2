"""Results written past the caches, as the CPU backend does for large calls, are those of small calls."""

from __future__ import annotations

import ml_dtypes  # noqa: F401 (names bfloat16 to NumPy)
import numpy as np
import pytest
from fusionkit_backends.cpu import runtime

ROWS, SIZE, PIECE = 2048, 5120, 64  # 42 MB in and out in bfloat16: past a cache of 32 MB, where pieces are not


def calls(native, x, other, dy):
    weight, rstd = x[0], np.ones(ROWS, np.float32)
    angles = np.linspace(0, 6, ROWS * 64, dtype=np.float32).reshape(ROWS, 64)

    def rotate(rows):
        heads = x[rows].reshape(1, -1, SIZE // 128, 128)
        return native.rope(heads, np.cos(angles[rows]), np.sin(angles[rows])).reshape(-1, SIZE)

    return {
        "rms_norm": lambda rows: native.rms_norm(x[rows], weight, 1e-5)[0],
        "rms_norm_grad": lambda rows: native.rms_norm_grad(x[rows], weight, rstd[rows], dy[rows])[0],
        "add_rms_norm": lambda rows: np.stack(native.add_rms_norm(x[rows], other[rows], weight, 1e-5)[:2], axis=1),
        "add_rms_norm_grad": lambda rows: np.stack(
            native.add_rms_norm_grad(x[rows], weight, rstd[rows], dy[rows], other[rows])[:2], axis=1
        ),
        "rope": rotate,
        "swiglu": lambda rows: native.swiglu(x[rows], other[rows]),
        "swiglu_grad": lambda rows: np.stack(native.swiglu_grad(x[rows], other[rows], dy[rows]), axis=1),
    }


@pytest.mark.parametrize("isa", runtime.native().available_isas())
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_large_calls_give_the_bits_of_small_ones(native, isa, dtype):
    rng = np.random.default_rng(0)
    native.set_isa(isa)
    base = rng.standard_normal((PIECE * 3, SIZE), dtype=np.float32)
    x, other, dy = (np.resize(np.roll(base, shift, axis=0), (ROWS, SIZE)).astype(dtype) for shift in (0, 1, 2))
    for name, call in calls(native, x, other, dy).items():
        whole = call(slice(None))
        for begin in range(0, ROWS, PIECE):
            rows_of_piece = slice(begin, begin + PIECE)
            np.testing.assert_array_equal(whole[rows_of_piece], call(rows_of_piece), err_msg=name)

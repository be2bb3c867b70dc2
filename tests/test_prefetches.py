"""Kernels that ask for memory ahead do so in their machine code: a compiler may drop what returns nothing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

OBJECTS = Path(__file__).parents[1] / "build/native/backends/cpu/csrc/kernels"
FORMS = 8  # of codes: 8 and 4 bits, with and without minimums, scales in one level and two
TILES = 4  # of 8, 4, 2 and 1 rows


@pytest.mark.skipif(not shutil.which("objdump"), reason="objdump, which lists machine code, is not installed")
@pytest.mark.skipif(not (OBJECTS / "avx2").exists(), reason="nothing was compiled for AVX2 here")
@pytest.mark.parametrize(("kernel", "forms"), [("quantized_product", FORMS), ("quantized_bytes", FORMS // 2)])
def test_products_with_codes_ask_ahead(kernel, forms):
    code = subprocess.run(
        ["objdump", "-d", OBJECTS / "avx2" / f"{kernel}.o"], check=True, capture_output=True, text=True
    ).stdout
    # Twice in each tile of each form, for words and scales. It was 0 when the compiler dropped them all.
    assert code.count("prefetch") >= 2 * forms * TILES

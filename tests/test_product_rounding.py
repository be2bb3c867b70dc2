"""float32 products round no more than another library's, whatever the rows: long sums are added in chains.

One chain of 1536 steps has twice the error of torch's product, and 30 layers of these move SmolLM2's scores by 1e-4.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from fusionkit_backends.cpu import runtime

import fusionkit as fk

torch = pytest.importorskip("torch")

ISAS = runtime.native().available_isas()
IN_FEATURES = (576, 1536, 4100)  # SmolLM2's, and one that no chain divides
ROWS = (1, 8, 37, 100, 300)  # one for each way that a product takes
OUT_FEATURES, ROWS_OF_THE_PEER = 96, 64
# Chains of 256 have an error of 0.7 * 2^-24 * sqrt(256 / 6), 1.13 times that of torch's product by MKL.
MOST = 1.25
# oneDNN reads a pack of its own as a whole, and adds up to 1024 steps one after another: twice that of 256.
MOST_OF_A_PACK = 2.5


def error(product, exact):
    """Root mean square, relative."""
    return np.sqrt(np.mean((product - exact) ** 2) / np.mean(exact**2))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("in_features", IN_FEATURES)
@pytest.mark.parametrize("batch_invariant", [False, True])
def test_a_product_rounds_no_more_than_torch(native, batch_invariant, in_features, isa):
    native.set_isa(isa)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((max(ROWS), in_features), np.float32)
    weight = rng.standard_normal((in_features, OUT_FEATURES), np.float32)
    exact = x.astype(np.float64) @ weight.astype(np.float64)
    peer = error((torch.from_numpy(x[:ROWS_OF_THE_PEER]) @ torch.from_numpy(weight)).numpy(), exact[:ROWS_OF_THE_PEER])
    with fk.use_backend("cpu"), fk.use_batch_invariant(batch_invariant):
        for rows in ROWS:
            for stored in (weight, np.asfortranarray(weight)):  # a tied head's weight is transposed
                assert error(fk.fused_linear(x[:rows], stored), exact[:rows]) < MOST * peer, rows
        packed, by_onednn = fk.pack_weight(weight), native.matmul_library() == "onednn" and not batch_invariant
        for rows in ROWS:
            most = MOST_OF_A_PACK if by_onednn else MOST
            assert error(fk.fused_linear(x[:rows], packed), exact[:rows]) < most * peer, f"packed, {rows}"
    assert {backend for _, backend, _ in fk.ledger()} == {"cpu"}


def test_documents_tell_how_many_steps_are_added_one_after_another():
    root = Path(__file__).resolve().parents[1]
    operands = (root / "backends/cpu/csrc/kernels/operands.h").read_text(encoding="utf-8")
    longest = re.findall(r"kLongestChain = (\d+);", operands)
    told = [
        *re.findall(r"own loops add (\d+) steps", (root / "docs/numerics.md").read_text(encoding="utf-8")),
        *re.findall(r"\[(\d+) steps\]\(numerics", (root / "docs/batch_invariance.md").read_text(encoding="utf-8")),
    ]
    assert len(longest) == 1 and told == 2 * longest

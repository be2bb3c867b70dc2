"""paged_attention with a window reads nothing before it: such positions hold NaN, and such blocks do not exist."""

from __future__ import annotations

import numpy as np
import pytest

import fusionkit as fk
from fusionkit import parity
from fusionkit.ops.paged_attention import case, first_key

BLOCK = 4
# Rows of a step, their tokens at [start, start + count): decoded where they lie, packed, and a prefill.
STEPS = {"decode": ([30, 9], [1, 3]), "chunk": ([30, 11], [13, 20]), "prefill": ([0, 30], [25, 1])}


def step(name, window):
    """The arguments, and what the op must give for them."""
    starts, counts = STEPS[name]
    encoder = [count if start == 0 else 0 for start, count in zip(starts, counts, strict=True)]
    made = case(name, encoder, starts, counts, num_heads=4, block_size=BLOCK, window=window)
    arguments = parity.arguments_of(fk.paged_attention.spec, made, "float32")
    caches = {name: arguments[name].copy() for name in ("key_cache", "value_cache")}
    return arguments, fk.paged_attention.spec.reference(**arguments | caches)


def without_what_is_outside(arguments, starts, window):
    """NaN before every row's window, and blocks of nobody where all of a block is before it."""
    tables = arguments["block_tables"]
    for row, start in enumerate(starts):
        first = first_key(start, window)
        for position in range(first):
            for cache in (arguments["key_cache"], arguments["value_cache"]):
                cache[tables[row, position // BLOCK], :, position % BLOCK] = np.nan
        tables[row, : first // BLOCK] = -1


@pytest.mark.parametrize("window", [1, 5, 8])
@pytest.mark.parametrize("backend", ["cpu", "eager"])
@pytest.mark.parametrize("name", STEPS)
def test_nothing_before_the_window_is_read(name, backend, window):
    arguments, expected = step(name, window)
    without_what_is_outside(arguments, STEPS[name][0], window)
    with fk.use_backend(backend):
        out = fk.paged_attention(**arguments)
    assert {chosen for _, chosen, _ in fk.ledger()} == {backend}
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5)


def test_a_block_inside_the_window_must_exist():
    arguments, _ = step("decode", 5)
    arguments["block_tables"][0, 26 // BLOCK] = -1
    with pytest.raises(ValueError, match="paged_attention: block_tables must be"):
        fk.paged_attention(**arguments)


def test_a_window_as_long_as_the_row_changes_nothing():
    arguments, expected = step("chunk", 44)
    whole = {**arguments, "window": 0}
    np.testing.assert_array_equal(fk.paged_attention(**arguments), fk.paged_attention(**whole))
    assert np.isfinite(expected).all()

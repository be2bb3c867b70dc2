"""What the gpu backend asks of cuBLAS, and how large the cross entropy's chunks are. Without a card."""

from __future__ import annotations

import pytest
import torch
from fusionkit_backends.gpu.autograd.fused_linear_cross_entropy import (
    CHUNK_BYTES,
    MULTIPLE,
    chunk_rows,
    fused_linear_cross_entropy,
)
from fusionkit_backends.gpu.autograd.products import rounded_once
from fusionkit_backends.gpu.kernels.launch import recording

from tests.gpu.launches import empty

SETTINGS = {"bfloat16": "allow_bf16_reduced_precision_reduction", "float16": "allow_fp16_reduced_precision_reduction"}


@pytest.mark.parametrize("dtype", SETTINGS)
@pytest.mark.parametrize("set_to", [(True, True), (False, True), (False, False)])
def test_sums_in_16_bits_are_off_for_one_product_and_then_as_they_were(dtype, set_to):
    settings, name = torch.backends.cuda.matmul, SETTINGS[dtype]
    before = getattr(settings, name), getattr(settings, f"{name}_split_k")
    try:
        setattr(settings, name, set_to)
        with rounded_once(getattr(torch, dtype)):
            assert not getattr(settings, name)
        assert (getattr(settings, name), getattr(settings, f"{name}_split_k")) == set_to
    finally:
        setattr(settings, name, before)


def test_the_last_of_two_products_in_flight_restores_the_setting():
    settings, name = torch.backends.cuda.matmul, SETTINGS["bfloat16"]
    assert getattr(settings, name)
    first, second = rounded_once(torch.bfloat16), rounded_once(torch.bfloat16)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not getattr(settings, name)
    second.__exit__(None, None, None)
    assert getattr(settings, name)


def test_an_evaluation_takes_no_gradients():
    x, weight = empty(64, 32, dtype="bfloat16"), empty(32, 100, dtype="bfloat16")
    labels = torch.empty(64, dtype=torch.int64, device="meta")
    with recording() as training:
        fused_linear_cross_entropy(x, weight, labels)
    with recording() as evaluation, torch.no_grad():
        fused_linear_cross_entropy(x, weight, labels)
    gradients = [launch.arguments[3] for launch in (*training, *evaluation)]
    assert gradients[0] is not None and gradients[1:] == [None]


@pytest.mark.parametrize("vocab_size", [1000, 32000, 128256, 256000])
@pytest.mark.parametrize("itemsize, held", [(4, 4), (2, 6)])
def test_a_chunks_memory_does_not_grow_with_the_vocabulary(vocab_size, itemsize, held):
    for tokens in (1, 2048, 16384, 131072):
        rows = chunk_rows(tokens, vocab_size, itemsize)
        assert rows >= MULTIPLE and rows * vocab_size * held <= CHUNK_BYTES
        assert rows % MULTIPLE == 0

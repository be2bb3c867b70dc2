"""Which products, sizes and messages the probe times: as large as the machine does in the time there is."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from fusionkit_planner.architecture import Architecture

Shape = tuple[int, int, int]  # rows, in_features, out_features
REFERENCE: Shape = (512, 512, 512)
ROWS = (32, 128, 512, 2048, 8192)
WIDTHS = (512, 2048, 8192)
MODEL_ROWS = (512, 4096)
TENSOR_DEGREES = (1, 2, 4, 8)
LARGEST_SECONDS = 0.4  # one call of the largest product
SEQUENCES = (512, 1024, 2048, 4096)
HEADS, HEAD_DIM = 8, 128
MESSAGES = (4 << 10, 64 << 10, 1 << 20, 16 << 20, 64 << 20)
STREAM_BYTES = (24 << 20, 96 << 20, 384 << 20)


def products(flops: float, memory_bytes: float, architecture: Architecture | None = None) -> list[Shape]:
    """The smallest first. Those that would take too long or too much memory are left out.

    Args:
        flops: FLOP/s of the reference.
        memory_bytes: that operands and result may take.
        architecture: whose own products are timed as well.
    """
    grid: Iterable[Shape] = itertools.product(ROWS, WIDTHS, WIDTHS)
    own = of_model(architecture) if architecture else ()
    fitting = {
        shape
        for shape in itertools.chain(grid, own)
        if num_flops(shape) <= flops * LARGEST_SECONDS and num_bytes(shape) <= memory_bytes
    }
    return sorted(fitting | {REFERENCE}, key=num_flops)


def of_model(architecture: Architecture) -> Iterator[Shape]:
    """A layer's products forward, and those of its weights' gradients, under some degrees of tensor parallelism."""
    for rows, tensor in itertools.product(MODEL_ROWS, TENSOR_DEGREES):
        for in_features, out_features in _matrices(architecture, tensor):
            yield rows, in_features, out_features
            yield in_features, rows, out_features


def _matrices(architecture: Architecture, tensor: int) -> Iterator[tuple[int, int]]:
    hidden, queries, keys = architecture.hidden_size, architecture.queries, architecture.keys
    yield hidden, max(1, (queries + 2 * keys) // tensor)
    yield max(1, queries // tensor), hidden
    yield hidden, max(1, architecture.widened // tensor)
    yield max(1, architecture.intermediate_size // tensor), hidden


def attention_rows(flops: float) -> int:
    """Of the longest sequence that takes no longer than the largest product may, at this rate."""
    fitting = [rows for rows in SEQUENCES if 2.0 * rows * rows * HEADS * HEAD_DIM <= flops * LARGEST_SECONDS]
    return (fitting or SEQUENCES[:1])[-1]


def num_flops(shape: Shape) -> float:
    rows, in_features, out_features = shape
    return 2.0 * rows * in_features * out_features


def num_bytes(shape: Shape) -> float:
    """With elements of 4 bytes: they are made in float32."""
    rows, in_features, out_features = shape
    return 4.0 * (rows * in_features + in_features * out_features + rows * out_features)

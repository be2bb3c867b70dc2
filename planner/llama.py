"""Llama 2 13B: the matrix products of a decoder layer under tensor parallelism, and how large the model is.

Source: Touvron et al. 2023, arXiv:2307.09288; the released configuration.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fusionkit_planner.overlap import Times, times

from fusionkit.backend import DeviceModel

NAME = "Llama 2 13B"
HIDDEN_SIZE, INTERMEDIATE_SIZE, NUM_HIDDEN_LAYERS, VOCAB_SIZE = 5120, 13824, 40, 32000
NUM_PARAMETERS = (
    2 * VOCAB_SIZE * HIDDEN_SIZE
    + NUM_HIDDEN_LAYERS * (4 * HIDDEN_SIZE**2 + 3 * HIDDEN_SIZE * INTERMEDIATE_SIZE + 2 * HIDDEN_SIZE)
    + HIDDEN_SIZE
)
COLUMN, ROW, ALL = "all_gather_matmul", "matmul_reduce_scatter", "matmul_all_reduce"
# The width that is sharded: columns of qkv and gate_up, rows of o_proj and down.
SHARDED_WIDTHS = {
    "qkv": (COLUMN, 3 * HIDDEN_SIZE),
    "o_proj": (ROW, HIDDEN_SIZE),
    "gate_up": (COLUMN, 2 * INTERMEDIATE_SIZE),
    "down": (ROW, INTERMEDIATE_SIZE),
}
COLUMN_LAYERS = tuple(layer for layer, (op, _) in SHARDED_WIDTHS.items() if op == COLUMN)
FORWARD = "forward"
DX, DX_AND_DW = "backward: dx", "backward: dx, dw beside it"


@dataclass(frozen=True)
class Row:
    """One line of the plan.

    Args:
        layer: qkv, o_proj, gate_up or down.
        op: which of the three.
        direction: forward; backward with the collective under dx's product alone; or with dw's product beside it.
        times: what the device needs.
    """

    layer: str
    op: str
    direction: str
    times: Times


def sequence_parallel_rows(device: DeviceModel, dtype: str, tokens: int, world_size: int) -> Iterator[Row]:
    """Tokens are sharded between the products. A gather's backward is a reduce-scatter and the other way round."""
    dual = {COLUMN: ROW, ROW: COLUMN}
    for layer, (op, width) in SHARDED_WIDTHS.items():
        for direction, which, num_products in ((FORWARD, op, 1), (DX, dual[op], 1), (DX_AND_DW, dual[op], 2)):
            yield Row(
                layer,
                which,
                direction,
                _times(device, dtype, which, tokens, width, world_size, num_products=num_products),
            )


def tensor_parallel_rows(device: DeviceModel, dtype: str, tokens: int, world_size: int) -> Iterator[Row]:
    """Without sequence parallelism: the row-parallel products end in an all-reduce, which their backward does not
    have; the column-parallel ones have it in the backward."""
    for layer, (op, width) in SHARDED_WIDTHS.items():
        direction = FORWARD if op == ROW else DX
        yield Row(layer, ALL, direction, _times(device, dtype, ALL, tokens, width, world_size))


def _times(
    device: DeviceModel, dtype: str, op: str, tokens: int, width: int, world_size: int, num_products: int = 1
) -> Times:
    shard = width // world_size
    in_features, out_features = (HIDDEN_SIZE, shard) if op == COLUMN else (shard, HIDDEN_SIZE)
    return times(device, dtype, op, tokens, in_features, out_features, world_size, num_products=num_products)

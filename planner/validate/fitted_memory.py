"""The memory of Megatron's systems: weights' state, and what forward passes keep, tensor by tensor.

Bytes of a token and layer, in 16 bits, of a mask one byte an element. h, q, k, f: widths of the model, of queries, of
keys, and of the MLP's activation. a: heads; s: keys; t: ranks of tensor, which sequence parallelism lets divide all.

    2021, 2022:       2h + 2h + h  (norm's input and output, dropout's mask)       twice
                      8h/t         (queries, keys, values, attention's output)
                      5 a s / t    (softmax's output, dropout's mask and output)   none if attention is selected
                      16h/t        (GeLU's input and output)
    Megatron-Core:    2h + 2h      (norm's input and output)                       twice
                      2 (2q + 2k)/t + 4a/t   (with attention's output, and float32 statistics)
                      2 (2f + f)/t           (SwiGLU's inputs and output)

Source: Korthikanti et al. 2022, arXiv:2205.05198, sections 4.1 and 4.2, recounted; Transformer Engine's layers, which
keep a norm's output divided and gather it again. Four numbers are fitted where a whole peak was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from fusionkit_planner import passes
from fusionkit_planner.backward_moments import backward_passes
from fusionkit_planner.validate import least_squares
from fusionkit_planner.validate.least_squares import STEP, Array, Problem
from fusionkit_planner.validate.rows import GIB, Row

NUMBERS = {
    # name: (where the fit begins, spread of its logarithm)
    "kept": (1.0, 0.1),  # activations by what is counted
    "logit_bytes": (6.0, 0.5),  # 16 bits, and float32 of them or of their gradient
    "largest_bytes": (4.0, 0.5),  # of the largest matrix: its gradient, before that joins the float32 sum
    "fixed": (0.7 * GIB, 0.7),  # buffers of collectives and of libraries
}


@dataclass(frozen=True)
class Figure:
    """A predicted and a measured number of bytes.

    Args:
        kind: "state", "activations" or "peak".
    """

    row: Row
    kind: str
    predicted: float
    measured: float


def fit(rows: Sequence[Row]) -> dict[str, float]:
    """The numbers, from rows with a measured peak; where the fit begins, if there are none."""
    rows = [row for row in rows if row.peak_bytes]
    begins = np.log([begin for begin, _ in NUMBERS.values()])
    if not rows:
        return _values(begins)
    measured = np.log([row.peak_bytes or 0.0 for row in rows])

    def residuals(x: Array) -> Array:
        return np.asarray(np.log([peak_bytes(row, _values(x)) for row in rows]) - measured)

    def slopes(x: Array, at: Array) -> Array:
        moves = STEP * np.eye(len(x))
        return np.stack([(residuals(x + move) - at) / STEP for move in moves], axis=1)

    spreads = np.array([spread for _, spread in NUMBERS.values()])
    return _values(least_squares.solve(Problem(begins, spreads, residuals, slopes)).numbers)


def _values(x: Array) -> dict[str, float]:
    return dict(zip(NUMBERS, np.exp(x).tolist(), strict=True))


def figures(rows: Sequence[Row], values: dict[str, float]) -> list[Figure]:
    """Of everything that was measured of the rows' memory."""
    found = []
    for row in rows:
        if row.state_bytes:
            found.append(Figure(row, "state", layer_state_bytes(row), row.state_bytes))
        if row.activation_bytes:
            found.append(Figure(row, "activations", kept_bytes(row, 0), row.activation_bytes))
        if row.peak_bytes:
            found.append(Figure(row, "peak", peak_bytes(row, values), row.peak_bytes))
    return found


def layer_state_bytes(row: Row) -> float:
    """Of a stage with layers alone, as Korthikanti et al. state it: matrices only."""
    layers = sum(row.layout.layers_of(0, row.architecture.num_hidden_layers))
    return _bytes_of_weight(row) * layers * row.architecture.matrices_of_layer / row.layout.tensor


def _bytes_of_weight(row: Row) -> float:
    system, layout = row.system, row.layout
    owners = layout.sharding * layout.context if layout.stage else 1
    return system.parameter_bytes + system.gradient_bytes + system.optimizer_bytes / owners


def kept_bytes(row: Row, stage: int) -> float:
    """By the forward passes of all micro-batches that a stage holds at its fullest."""
    layout, count = row.layout, row.architecture.num_hidden_layers
    layers = layout.layers_of(stage, count)
    held = backward_passes(stage, layout.pipeline, layout.micro_batches, layout.virtual_stages)
    fullest = max(sum(each * number for each, number in zip(counts, layers, strict=True)) for counts, _, _ in held)
    return fullest * passes.tokens(layout, row.sequence) * bytes_of_token(row)


def bytes_of_token(row: Row) -> float:
    """That one layer keeps of a token, as above."""
    a, layout, t = row.architecture, row.layout, row.layout.tensor
    whole = t if layout.sequence_parallel else 1
    if layout.recompute == "full":
        return 2.0 * a.hidden_size / whole
    if row.system.score_bytes == 0:
        divided = 2.0 * (2 * a.queries + 2 * a.keys) + 4.0 * a.num_attention_heads
        return 8.0 * a.hidden_size / whole + (divided + 2.0 * (a.widened + a.intermediate_size)) / t
    scores = 0.0 if layout.recompute == "selective" else 5.0 * a.num_attention_heads * row.sequence
    divided = 2.0 * (2 * a.queries + 2 * a.keys) + 2.0 * (a.widened + a.intermediate_size) + scores
    return 10.0 * a.hidden_size / whole + divided / t


def peak_bytes(row: Row, values: dict[str, float]) -> float:
    """Of the stage that has most."""
    return max(_stage_bytes(row, stage, values) for stage in range(row.layout.pipeline))


def _stage_bytes(row: Row, stage: int, values: dict[str, float]) -> float:
    a, layout = row.architecture, row.layout
    is_first, is_last = stage == 0, stage == layout.pipeline - 1
    layers = sum(layout.layers_of(stage, a.num_hidden_layers))
    tables = (is_first + is_last) if not a.is_tied else max(is_first, is_last)
    elements = (layers * a.parameters_of_layer + tables * a.vocab_size * a.hidden_size) / layout.tensor
    logits = is_last * passes.tokens(layout, row.sequence) * a.vocab_size / layout.tensor
    return (
        _bytes_of_weight(row) * elements
        + values["kept"] * kept_bytes(row, stage)
        + values["logit_bytes"] * logits
        + values["largest_bytes"] * a.hidden_size * a.widened / layout.tensor
        + values["fixed"]
    )

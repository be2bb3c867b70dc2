"""Measurements with known seconds."""

from __future__ import annotations

from fusionkit_bench.mc2.cases import Case
from fusionkit_bench.mc2.measurement import (
    CHUNKS,
    COLLECTIVE,
    CONTROL,
    FUSED,
    PRODUCT,
    SERIAL,
    Measurement,
    RankRounds,
)

CASE = Case("all_gather_matmul", "forward", 2, 2560, 2048, 2688, "bfloat16")
CHOSEN = {("all_gather_matmul", "cpu", "chosen"): 15}


def measured(
    product=0.4,
    collective=0.24,
    serial=0.64,
    fused=0.412,
    control=0.64,
    chunks=0.402,
    rounds=15,
    ran=CHOSEN,
    link="180mbit",
    shares_cores=False,
):
    """Both ranks took the same; every round was the same."""
    seconds = {PRODUCT: product, COLLECTIVE: collective, SERIAL: serial, FUSED: fused, CONTROL: control, CHUNKS: chunks}
    given = {name: [value] * rounds for name, value in seconds.items() if value is not None}
    rank = RankRounds(given, [0.01] * rounds, ran, 17, "oneDNN's product")
    return Measurement(CASE, link, shares_cores, [rank, rank])

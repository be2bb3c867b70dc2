"""An op, a direction and sizes; and sizes for which the collective takes a wanted share of the product's time."""

from __future__ import annotations

from dataclasses import dataclass, replace

ALL_GATHER, REDUCE_SCATTER, ALL_REDUCE = "all_gather_matmul", "matmul_reduce_scatter", "matmul_all_reduce"
OPS = (ALL_GATHER, REDUCE_SCATTER, ALL_REDUCE)
FORWARD, BACKWARD = "forward", "backward"
BYTES = {"bfloat16": 2, "float32": 4}

WIDTH = 2048  # features of what travels
ROWS_OF_A_RANK = 1280  # tokens
MULTIPLE = 64  # of the size that is chosen: whole blocks of the product


@dataclass(frozen=True)
class Case:
    """One measured call, the same on every rank.

    Args:
        M: tokens of all ranks together. all_gather_matmul takes [M / t, K] and gives [M, N]; matmul_reduce_scatter
            takes [M, K] and gives [M / t, N]; matmul_all_reduce takes [M, K] and gives [M, N].
        K, N: the weight's sizes on one rank.
    """

    op: str
    direction: str
    world_size: int
    M: int
    K: int
    N: int
    dtype: str

    @property
    def name(self) -> str:
        return f"{self.op} {self.direction} M{self.M} K{self.K} N{self.N} {self.dtype}"

    @property
    def flops(self) -> float:
        """Of one rank's products: one forward, two backward."""
        return 2.0 * self.M * self.K * self.N * (2 if self.direction == BACKWARD else 1)

    @property
    def bytes_sent(self) -> float:
        """By each rank, with a direct exchange: what it has, to every other rank; an all-reduce does so twice."""
        features = self.K if self.op == ALL_GATHER else self.N
        once = (self.world_size - 1) / self.world_size * self.M * features * BYTES[self.dtype]
        return 2 * once if self.op == ALL_REDUCE else once

    def with_ratio(self, ratio: float, flops_per_s: float, bytes_per_s: float) -> Case:
        """The case with N (all_gather_matmul) or K (the others) such that c is `ratio` at these measured rates.

        c = (bytes_sent / bytes_per_s) / (flops / flops_per_s) is proportional to 1 over that size.
        """
        size = self.N if self.op == ALL_GATHER else self.K
        now = self.bytes_sent / bytes_per_s * flops_per_s / self.flops
        chosen = max(MULTIPLE, round(size * now / ratio / MULTIPLE) * MULTIPLE)
        return replace(self, N=chosen) if self.op == ALL_GATHER else replace(self, K=chosen)


def first_guess(op: str, direction: str, world_size: int, dtype: str, rows: int | None, width: int = WIDTH) -> Case:
    """Square, before anything was measured. rows: of one rank."""
    return Case(op, direction, world_size, world_size * (rows or ROWS_OF_A_RANK), width, width, dtype)


def directions_of(op: str) -> tuple[str, ...]:
    """matmul_all_reduce's backward has no collective: nothing to hide."""
    return (FORWARD,) if op == ALL_REDUCE else (FORWARD, BACKWARD)

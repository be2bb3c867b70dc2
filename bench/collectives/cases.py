"""What is measured, and what its bytes are."""

from __future__ import annotations

from dataclasses import dataclass

OPS = ("all_reduce", "all_gather", "reduce_scatter", "send_recv")
SIZES = (8, 4 << 10, 1 << 20, 16 << 20, 64 << 20)
CEILING = "ceiling"


@dataclass(frozen=True)
class Case:
    """num_bytes: of all_reduce's array, all_gather's result, reduce_scatter's input, or one message."""

    op: str
    num_bytes: int

    def moved(self, world_size: int) -> float:
        """Bytes that must leave each rank, at least: times this, per second, is the "bus bandwidth" of nccl-tests."""
        shares = {"all_reduce": 2 * (world_size - 1) / world_size, "send_recv": 1.0, CEILING: 1.0}
        return self.num_bytes * shares.get(self.op, (world_size - 1) / world_size)

    def iterations(self) -> int:
        """Of one timing: some milliseconds together."""
        return max(2, min(200, (64 << 20) // (self.num_bytes + 4096)))

    @property
    def size(self) -> str:
        for unit, number in (("MiB", 1 << 20), ("KiB", 1 << 10)):
            if self.num_bytes >= number:
                return f"{self.num_bytes // number} {unit}"
        return f"{self.num_bytes} B"

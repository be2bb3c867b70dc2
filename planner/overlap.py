"""How much of a collective a matrix product can hide: formulas over a device's rates.

Tg: the product alone; Tc: the collective alone; Tf: both in one op; c = Tc / Tg; t: world_size; S: chunks that a rank
sends of its shard. Hidden is H = 1 - (Tf - Tg) / Tc. Perfect rates are assumed: no start-up times, no jitter.
"""

from __future__ import annotations

from dataclasses import dataclass

from fusionkit.backend import DeviceModel
from fusionkit.ops import load_spec
from fusionkit.parallel.chunks import most_chunks, num_chunks

SPLIT_LOSS = 0.01
TARGET = 0.95


@dataclass(frozen=True)
class Times:
    """One op's seconds on one device.

    Args:
        product: Tg, of everything that the collective may hide under.
        collective: Tc.
        world_size: t.
        num_chunks: S by the rule of `num_chunks`.
        most_chunks: the largest S whose chunks are not too small.
        reduces_all: an all-reduce: `num_chunks` is then C, along the rows of the whole product.
    """

    product: float
    collective: float
    world_size: int
    num_chunks: int
    most_chunks: int
    reduces_all: bool = False

    @property
    def c(self) -> float:
        return self.collective / self.product

    def fused(self, num_chunks: int, split_loss: float = 0.0) -> float:
        """Tf at best.

            gather, reduce-scatter:  max(Tg, Tc + Tg / (tS))
            all-reduce:              max(Tg + Tc / C, Tc + Tg / C)

        The first product of a reduce-scatter, the last of a gather, has nothing to run beside it; the last chunk of an
        all-reduce neither, since no product of its own is left.
        """
        product = self.product * (1 + split_loss)
        if self.reduces_all:
            return max(product + self.collective / num_chunks, self.collective + product / num_chunks)
        return max(product, self.collective + product / (self.world_size * num_chunks))

    def hidden(self, num_chunks: int, split_loss: float = 0.0) -> float:
        """H = 1 - (Tf - Tg) / Tc."""
        return 1 - (self.fused(num_chunks, split_loss) - self.product) / self.collective

    @property
    def bound(self) -> float:
        """No implementation hides more: min(1, (1 - 1/(tS)) / c), with an all-reduce (1 - 1/C) min(1, 1/c), with as
        many chunks as may be."""
        return self.hidden(self.most_chunks)

    @property
    def expected(self) -> float:
        """With S by the rule, and a product that loses 1% by being split."""
        return self.hidden(self.num_chunks, SPLIT_LOSS)

    def uncovered(self, num_chunks: int) -> float:
        """Seconds of the collective beyond what its own product hides under the target."""
        steps = num_chunks if self.reduces_all else self.world_size * num_chunks
        return TARGET * self.collective - self.product * (1 - 1 / steps)

    @property
    def filler_needed(self) -> float:
        """Seconds of another product beside this one with which 95% of the collective hides; 0 if none is needed. An
        all-reduce ends with a chunk that has no product of its own; it needs `defer`."""
        tail = self.collective * (1 / self.most_chunks - (1 - TARGET)) if self.reduces_all else 0.0
        return max(0.0, tail, self.uncovered(self.most_chunks))

    @property
    def spare(self) -> float:
        """Seconds of this product under which another collective may hide."""
        return max(0.0, -self.uncovered(self.most_chunks))


def peer_bandwidth(device: DeviceModel, world_size: int) -> float:
    """Bytes/s that one rank sends, and receives, in a direct exchange with all others."""
    return device.link_bandwidth * (world_size - 1 if device.link_topology == "mesh" else 1)


def collective_seconds(device: DeviceModel, world_size: int, num_bytes: float) -> float:
    """An all-gather to, or a reduce-scatter of, `num_bytes` a rank: (t - 1)/t of them pass each rank's links.

    So, for products of `width` columns unsharded, Tg / Tc = width / (t - 1) * bandwidth / FLOP/s, whatever the rows.
    """
    return (world_size - 1) / world_size * num_bytes / peer_bandwidth(device, world_size)


def times(
    device: DeviceModel,
    dtype: str,
    op: str,
    rows: int,
    in_features: int,
    out_features: int,
    world_size: int,
    *,
    itemsize: int = 2,
    num_products: int = 1,
) -> Times:
    """One call of `op` over `rows` gathered rows; `num_products`: 2 where the collective hides under a second product
    of as many FLOPs. The FLOPs are those of the op's spec."""
    dims = {"rows": rows, "gathered_rows": rows, "...": rows, "in_features": in_features, "out_features": out_features}
    product = num_products * load_spec(op).cost(dims, itemsize, False).flops / device.flops[dtype]
    row_bytes = itemsize * (in_features if op == "all_gather_matmul" else out_features)
    collective = collective_seconds(device, world_size, rows * row_bytes)
    most = most_chunks(rows // world_size, row_bytes)
    if op == "matmul_all_reduce":  # a reduce-scatter and a gather of each chunk
        return Times(product, 2 * collective, world_size, most, most, reduces_all=True)
    return Times(product, collective, world_size, num_chunks(collective / product, world_size, most), most)

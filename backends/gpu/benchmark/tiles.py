"""The neighbours of each entry in kernels/attention_tiles.py, so that the table can be set by what a card does."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from fusionkit_backends.gpu.autograd import flash_attention as attention
from fusionkit_backends.gpu.benchmark.attention import PRODUCT, Shape, tensors
from fusionkit_backends.gpu.benchmark.clock import measure
from fusionkit_backends.gpu.benchmark.contestants import directions, square_product
from fusionkit_backends.gpu.benchmark.rows import Row, rated
from fusionkit_backends.gpu.benchmark.setting import Setting
from fusionkit_backends.gpu.kernels.attention_tiles import Pass, Tiles, choose

from fusionkit.ops.flash_attention import causal_pairs

PIECE = "tiles"
PASSES: tuple[Pass, ...] = ("forward", "dq", "dk_dv")


def run(setting: Setting) -> Iterator[Row]:
    length = setting.lengths[len(setting.lengths) // 2]
    for head_dim in (setting.head_dim,) if setting.dry_run else (64, 128, 256):
        heads = setting.hidden // head_dim
        shape = Shape(f"S{length}-D{head_dim}-causal", length, heads, heads, head_dim)
        for direction in PASSES:
            yield from of_pass(setting, shape, direction)


def neighbours(tiles: Tiles) -> list[Tiles]:
    """Half, the same and twice each block; one stage more or less; half and twice the warps."""
    found = [tiles]
    for m, n in ((1, 0.5), (1, 2), (0.5, 1), (2, 1), (0.5, 2), (2, 0.5)):
        found.append(Tiles(int(tiles.block_m * m), int(tiles.block_n * n), tiles.num_warps, tiles.num_stages))
    for stages in (tiles.num_stages - 1, tiles.num_stages + 1):
        found.append(Tiles(tiles.block_m, tiles.block_n, tiles.num_warps, stages))
    for warps in (tiles.num_warps // 2, tiles.num_warps * 2):
        found.append(Tiles(tiles.block_m, tiles.block_n, warps, tiles.num_stages))
    return [t for t in found if t.block_m >= 16 and t.block_n >= 16 and t.num_warps in (4, 8, 16) and t.num_stages > 0]


def of_pass(setting: Setting, shape: Shape, direction: Pass) -> Iterator[Row]:
    made = tensors(setting, shape)
    q, k, v = made["q"], made["k"], made["v"]
    calls = {}
    table = choose(direction, shape.head_dim, setting.dtype.itemsize, False)
    for tiles in [table] if setting.dry_run else neighbours(table):

        def chosen(each: Pass, head_dim: int, itemsize: int, masked: bool, tiles: Tiles = tiles) -> Tiles:
            return tiles if each == direction else choose(each, head_dim, itemsize, masked)

        calls[str(tiles).removeprefix("Tiles")] = (
            lambda c=chosen: attention.own(q, k, v, True, tiles=c)[0],
            [q, k, v],
        )
    wanted = "forward" if direction == "forward" else "forward + backward"
    called = directions(calls, [torch.randn_like(q)])[wanted]
    ceiling, ceiling_flops = square_product(setting)
    pairs = causal_pairs(shape.length, shape.length) * q.shape[0] * shape.heads
    flops = 4.0 * shape.head_dim * pairs * (1 if direction == "forward" else 3.5)
    outcomes = measure({**called, PRODUCT: ceiling}, setting.num_rounds)
    yield from rated(PIECE, f"{direction} {shape.name}", wanted, outcomes, PRODUCT, flops, ceiling_flops)

"""Launches attention over a paged cache: inspect, store, attend, add up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import triton
from fusionkit_backends.gpu.kernels import paged_attention, paged_rows
from fusionkit_backends.gpu.kernels.attention import block_of_heads
from fusionkit_backends.gpu.kernels.attention_tiles import SMALL, Tiles
from fusionkit_backends.gpu.kernels.card import card
from fusionkit_backends.gpu.kernels.launch import INTERPRETED
from fusionkit_backends.gpu.kernels.named import launch_named
from fusionkit_backends.gpu.kernels.paged_arguments import Cache, Paths, Rows, Tokens

SHORT = 16  # rows of a tile: a row of more queries, heads of a group included, does not divide its keys
BLOCK_H = 8  # heads of a token that a program stores
TABLE_CHUNK = 128  # entries of a row's table that are looked at at once
LEAST_SPLIT = 16 if INTERPRETED else 256  # keys that are worth a program


@dataclass(frozen=True)
class Step:
    """One call whose rows were inspected, and the cache's tensors; the last axes of all are dense."""

    q: Any
    k: Any
    v: Any
    key_cache: Any
    value_cache: Any
    block_tables: Any
    seq_lens_encoder: Any
    seq_lens_decoder: Any
    seq_lens_this_time: Any
    scale: float
    empty: Callable[[tuple[int, ...], str], Any]
    first_tokens: Any = None  # of each row in q, int32; `run` fills it

    @property
    def batch_size(self) -> int:
        return int(self.seq_lens_this_time.shape[0])

    def described(self) -> dict[str, Any]:
        """What every kernel that goes through the cache is told."""
        lengths = self.seq_lens_encoder, self.seq_lens_decoder, self.seq_lens_this_time
        return {
            "key_cache": Cache(self.key_cache, *self.key_cache.stride()[:3]),
            "value_cache": Cache(self.value_cache, *self.value_cache.stride()[:3]),
            "rows": Rows(self.first_tokens, *lengths),
            "tables": self.block_tables,
            "table_row": self.block_tables.stride()[0],
            "block_size": self.key_cache.shape[2],
            "head_dim": self.q.shape[2],
        }


def tokens_of(tensor: Any) -> Tokens:
    return Tokens(tensor, *tensor.stride()[:2])


@dataclass(frozen=True)
class Plan:
    """What the host must know of the rows before it launches: the most tokens of a row, of a short and of a long one
    (0: there is none), and the longest sequence of the short ones."""

    most: int
    most_short: int
    most_long: int
    longest_short: int


def inspect(step: Step) -> Any:
    """[batch_size, 3] int32 on the device; paged_rows.inspect_rows_kernel says what."""
    found = step.empty((step.batch_size, 3), "int32")
    num_blocks, _, block_size, _ = step.key_cache.shape
    launch_named(
        paged_rows.inspect_rows_kernel,
        (step.batch_size,),
        encoder=step.seq_lens_encoder,
        decoder=step.seq_lens_decoder,
        this_time=step.seq_lens_this_time,
        tables=step.block_tables,
        found=found,
        table_row=step.block_tables.stride()[0],
        max_blocks=step.block_tables.shape[1],
        num_blocks=num_blocks,
        block_size=block_size,
        CHUNK=TABLE_CHUNK,
    )
    return found


def most_of_short(step: Step) -> int:
    """Tokens of a row whose queries fit one tile."""
    return max(1, SHORT // (step.q.shape[1] // step.key_cache.shape[1]))


def plan(step: Step, rows: list[tuple[int, int]]) -> Plan:
    """rows: (first position, tokens) of each."""
    limit = most_of_short(step)
    short = [(start, count) for start, count in rows if 0 < count <= limit]
    long = [count for _, count in rows if count > limit]
    counts, lengths = [count for _, count in short], [start + count for start, count in short]
    return Plan(max([0, *counts, *long]), max([0, *counts]), max([0, *long]), max([0, *lengths]))


def run(step: Step, plan: Plan) -> Any:
    """out [tokens, num_heads, head_dim], after the new tokens were stored."""
    out, firsts = step.empty(tuple(step.q.shape), "q"), step.empty((step.batch_size,), "int32")
    step = replace(step, first_tokens=firsts)
    launch_named(
        paged_rows.first_tokens_kernel,
        (1,),
        this_time=step.seq_lens_this_time,
        firsts=firsts,
        num_rows=step.batch_size,
    )
    _store(step, plan)
    if plan.most_short:
        _attend_short(step, plan, out)
    if plan.most_long:
        limit = most_of_short(step)
        _attend(step, out, (limit + 1, plan.most_long), _prefill_tiles(step))
    return out


def _store(step: Step, plan: Plan) -> None:
    heads = step.k.shape[1]
    launch_named(
        paged_rows.store_tokens_kernel,
        (step.batch_size * plan.most, 1, triton.cdiv(heads, BLOCK_H)),
        k=tokens_of(step.k),
        v=tokens_of(step.v),
        **step.described(),
        num_heads=heads,
        most=plan.most,
        BLOCK_H=BLOCK_H,
        BLOCK_D=triton.next_power_of_2(step.q.shape[2]),
    )


def _attend(
    step: Step,
    out: Any,
    tokens: tuple[int, int],
    tiles: Tiles,
    partial: tuple[Any, Any] | None = None,
    splits: int = 1,
    split_keys: int = 0,
) -> None:
    _, num_heads, head_dim = step.q.shape
    heads = step.key_cache.shape[1]
    for careful in (False, True):
        used = _careful_tiles(step) if careful else tiles
        query_blocks = triton.cdiv(tokens[1] * (num_heads // heads), used.block_m)
        launch_named(
            paged_attention.paged_attention_kernel,
            (step.batch_size * heads * query_blocks, 1, splits),
            q=tokens_of(step.q),
            out=out,
            partial=out if partial is None else partial[0],
            partial_lse=out if partial is None else partial[1],
            **step.described(),
            num_heads=num_heads,
            num_key_value_heads=heads,
            num_rows=step.batch_size,
            query_blocks=query_blocks,
            least=tokens[0],
            most=tokens[1],
            split_keys=split_keys,
            scale=step.scale,
            PATHS=Paths(used.block_m, used.block_n, block_of_heads(head_dim), partial is not None, careful),
            num_warps=used.num_warps,
            num_stages=used.num_stages,
        )


def _attend_short(step: Step, plan: Plan, out: Any) -> None:
    """The keys of a row are divided so that two programs wait for every multiprocessor."""
    tiles = SMALL if INTERPRETED else (Tiles(SHORT, 64, 4, 3) if step.q.element_size() == 2 else Tiles(SHORT, 32, 4, 1))
    wanted = triton.cdiv(2 * card().num_multiprocessors, max(1, step.batch_size * step.key_cache.shape[1]))
    splits = max(1, min(wanted, triton.cdiv(plan.longest_short, LEAST_SPLIT)))
    tokens = (1, plan.most_short)
    if splits == 1:
        return _attend(step, out, tokens, tiles)
    split_keys = triton.cdiv(triton.cdiv(plan.longest_short, splits), tiles.block_n) * tiles.block_n
    _, num_heads, head_dim = step.q.shape
    # Places for the short rows alone: beside a long prefill, places for every token would take gigabytes.
    places = splits, step.batch_size * plan.most_short, num_heads
    partial, partial_lse = step.empty((*places, head_dim), "float32"), step.empty(places, "float32")
    _attend(step, out, tokens, tiles, (partial, partial_lse), splits, split_keys)
    launch_named(
        paged_attention.add_splits_kernel,
        (step.batch_size * plan.most_short, 1, num_heads),
        partial=partial,
        partial_lse=partial_lse,
        out=out,
        rows=step.described()["rows"],
        num_heads=num_heads,
        num_rows=step.batch_size,
        head_dim=head_dim,
        most=plan.most_short,
        num_splits=splits,
        BLOCK_D=triton.next_power_of_2(head_dim),
    )
    return None


def _careful_tiles(step: Step) -> Tiles:
    """Of launches that mend what is not finite: small, so that none spills."""
    return SMALL if INTERPRETED else Tiles(16, 16, 4 if step.q.element_size() == 2 else 8, 1)


def _prefill_tiles(step: Step) -> Tiles:
    if INTERPRETED:
        return SMALL
    wide = step.q.shape[2] > 128
    if step.q.element_size() == 4:
        return Tiles(16 if wide else 32, 32, 8, 1)
    return Tiles(64, 32 if wide else 64, 8, 2)

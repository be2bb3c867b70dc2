"""Launches the attention kernels. Results and workspaces come from the caller's `empty`: any framework's tensors do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import triton
from fusionkit_backends.gpu.kernels import attention_backward, attention_blocks, attention_forward, attention_tiles
from fusionkit_backends.gpu.kernels.attention_arguments import Heads, Lists, Mask, Paths
from fusionkit_backends.gpu.kernels.attention_tiles import Pass, Tiles
from fusionkit_backends.gpu.kernels.named import launch_named

LEAST_PRODUCT = 16  # rows and columns of tl.dot's operands


@dataclass(frozen=True)
class Problem:
    """One call with at least one query and one key.

    Args:
        q, k, v: as the op's; the last axis is dense, the others have any stride.
        startend_row_indices: dense.
        scale: the factor of the scores.
        empty: (shape, dtype name) -> a dense tensor on q's device; the dtype "q" stands for q's.
        tiles: (pass, head_dim, bytes of an element, masked by a tensor) -> the block sizes.
    """

    q: Any
    k: Any
    v: Any
    causal: bool
    scale: float
    empty: Callable[[tuple[int, ...], str], Any]
    attn_mask: Any = None
    startend_row_indices: Any = None
    tiles: Callable[[Pass, int, int, bool], Tiles] = attention_tiles.choose

    @property
    def has_float_mask(self) -> bool:
        return self.attn_mask is not None and not str(self.attn_mask.dtype).endswith("bool")

    @property
    def num_bounds(self) -> int:
        return 0 if self.startend_row_indices is None else int(self.startend_row_indices.shape[3])

    @property
    def in_parts(self) -> bool:
        """Whether the backward reads lse as two addends, for which their rounded sum would not do."""
        return self.has_float_mask or self.q.element_size() == 4

    @property
    def passes(self) -> tuple[bool, ...]:
        """`Paths.careful` of each launch: where pairs can be dropped, a second one mends what is not finite."""
        drops = self.causal or self.attn_mask is not None or self.startend_row_indices is not None
        spills = self.q.element_size() == 4 and self.q.shape[3] > 128  # whatever the tiles
        return (False, True) if drops and not spills else (False,)

    def tiles_of(self, direction: Pass, careful: bool = False) -> Tiles:
        head_dim, itemsize = self.q.shape[3], self.q.element_size()
        if careful:
            return attention_tiles.choose_careful(direction, head_dim, itemsize)
        return self.tiles(direction, head_dim, itemsize, self.attn_mask is not None)

    def blocks(self, tiles: Tiles) -> dict[str, Any]:
        head_dim = self.q.shape[3]
        block_d = block_of_heads(head_dim)
        return {
            "block_m": tiles.block_m,
            "block_n": tiles.block_n,
            "block_d": block_d,
            "padded": block_d != head_dim,
        }

    def paths(self, tiles: Tiles, careful: bool) -> Paths:
        bool_mask = self.attn_mask is not None and not self.has_float_mask
        return Paths(
            **self.blocks(tiles),
            causal=self.causal,
            bool_mask=bool_mask,
            float_mask=self.has_float_mask,
            num_bounds=self.num_bounds,
            in_parts=self.in_parts,
            negative=self.scale < 0,
            careful=careful,
            skips=self.attn_mask is None and self.num_bounds == 0 and not careful,
        )

    def described(self) -> dict[str, Any]:
        """What every attention kernel is told. Absent tensors have stand-ins, and strides of axes of size 1 are 0."""
        mask, bounds = self.attn_mask, self.startend_row_indices
        strides, shape = ((0, 0, 0, 0), (1, 1, 1, 1)) if mask is None else (mask.stride(), mask.shape)
        batch, head, row = (0 if size == 1 else stride for size, stride in zip(shape[:3], strides[:3], strict=True))
        return {
            "q": heads(self.q),
            "k": heads(self.k),
            "v": heads(self.v),
            "mask": Mask(self.q if mask is None else mask, row, strides[3]),
            "mask_batch": batch,
            "mask_head": head,
            "bound_heads": 1 if bounds is None else bounds.shape[1],
            "q_len": self.q.shape[1],
            "kv_len": self.k.shape[1],
            "num_heads": self.q.shape[2],
            "num_key_value_heads": self.k.shape[2],
            "head_dim": self.q.shape[3],
        }


def block_of_heads(head_dim: int) -> int:
    return max(LEAST_PRODUCT, triton.next_power_of_2(head_dim))


def heads(tensor: Any) -> Heads:
    batch, row, head, _ = tensor.stride()
    return Heads(tensor, batch, row, head)


def listed_blocks(problem: Problem, tiles: Tiles, by_query: bool) -> dict[str, Any]:
    """Lists of the blocks that attend, for each block of queries or of keys; stand-ins without bounds."""
    bounds = problem.startend_row_indices
    if bounds is None:
        return {"lists": Lists(problem.q, problem.q, problem.q), "max_blocks": 0}
    batch_size, bound_heads, kv_len, num_bounds = bounds.shape
    heads, q_len = batch_size * bound_heads, problem.q.shape[1]
    num_query_blocks, num_key_blocks = triton.cdiv(q_len, tiles.block_m), triton.cdiv(kv_len, tiles.block_n)
    programs, listed = (num_query_blocks, num_key_blocks) if by_query else (num_key_blocks, num_query_blocks)
    extremes = problem.empty((heads, num_key_blocks, num_bounds, 2), "int32")
    blocks, counts = problem.empty((heads, programs, listed), "int32"), problem.empty((heads, programs), "int32")
    shared = {"extremes": extremes, "kv_len": kv_len, "num_key_blocks": num_key_blocks}
    launch_named(
        attention_blocks.bound_extremes_kernel,
        (heads * num_key_blocks,),
        **shared,
        bounds=bounds,
        NUM_BOUNDS=num_bounds,
        BLOCK_N=tiles.block_n,
    )
    launch_named(
        attention_blocks.attending_blocks_kernel,
        (heads * programs,),
        **shared,
        blocks=blocks,
        counts=counts,
        q_len=q_len,
        num_listed=listed,
        num_programs=programs,
        PATHS=attention_blocks.Paths(tiles.block_m, tiles.block_n, problem.causal, num_bounds, by_query),
    )
    return {"lists": Lists(bounds, blocks, counts), "max_blocks": listed}


def launch_passes(kernel: Any, direction: Pass, problem: Problem, **arguments: Any) -> None:
    """The ordinary launch and, where pairs can be dropped, the careful one: each with its tiles and lists of blocks."""
    by_query = direction != "dk_dv"
    batch_size, num_rows, num_heads, _ = problem.q.shape if by_query else problem.k.shape
    for careful in problem.passes:
        tiles = problem.tiles_of(direction, careful)
        launch_named(
            kernel,
            (triton.cdiv(num_rows, tiles.block_m if by_query else tiles.block_n) * batch_size * num_heads,),
            **problem.described(),
            **listed_blocks(problem, tiles, by_query),
            **arguments,
            PATHS=problem.paths(tiles, careful),
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
        )


def forward(problem: Problem) -> tuple[Any, Any, Any]:
    """(out [batch_size, q_len, num_heads, head_dim], lse [batch_size, num_heads, q_len] float32, what backward reads in
    its place), all dense."""
    batch_size, q_len, num_heads, _ = problem.q.shape
    out = problem.empty(tuple(problem.q.shape), "q")
    lse = problem.empty((batch_size, num_heads, q_len), "float32")
    parts = problem.empty((*lse.shape, 2), "float32") if problem.in_parts else lse
    results = {"out": out, "lse": lse, "parts": parts, "scale": abs(problem.scale)}
    launch_passes(attention_forward.attention_forward_kernel, "forward", problem, **results)
    return out, lse, parts


def backward(problem: Problem, results: tuple[Any, Any, Any], dout: Any, dlse: Any) -> tuple[Any, Any, Any]:
    """(dq, dk, dv), dense. results: forward's. dlse, which may be None, and dout's last axis are dense."""
    out, lse, parts = results
    delta = _delta(problem, out, lse, dout, dlse)
    shared = {"dout": heads(dout), "lse": parts, "delta": delta, "scale": problem.scale}
    return (_dq(problem, shared), *_dk_dv(problem, shared))


def _delta(problem: Problem, out: Any, lse: Any, dout: Any, dlse: Any) -> Any:
    batch_size, q_len, num_heads, head_dim = problem.q.shape
    delta, tiles = problem.empty((batch_size, num_heads, q_len), "float32"), problem.tiles_of("dq")
    launch_named(
        attention_backward.attention_delta_kernel,
        (triton.cdiv(q_len, tiles.block_m) * batch_size * num_heads,),
        out=out,
        dout=heads(dout),
        lse=lse,
        dlse=lse if dlse is None else dlse,
        delta=delta,
        q_len=q_len,
        num_heads=num_heads,
        head_dim=head_dim,
        HAS_DLSE=dlse is not None,
        PATHS=Paths(**problem.blocks(tiles)),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    return delta


def _dq(problem: Problem, shared: dict[str, Any]) -> Any:
    dq = problem.empty(tuple(problem.q.shape), "q")
    launch_passes(attention_backward.attention_dq_kernel, "dq", problem, **shared, dq=dq)
    return dq


def _dk_dv(problem: Problem, shared: dict[str, Any]) -> tuple[Any, Any]:
    dk, dv = (problem.empty(tuple(problem.k.shape), "q") for _ in range(2))
    launch_passes(attention_backward.attention_dk_dv_kernel, "dk_dv", problem, **shared, dk=dk, dv=dv)
    return dk, dv

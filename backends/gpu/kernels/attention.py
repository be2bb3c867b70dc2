"""Launches the attention kernels. Results and workspaces come from the caller's `empty`: any framework's tensors do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import triton
from fusionkit_backends.gpu.kernels import attention_backward, attention_blocks, attention_forward, attention_tiles
from fusionkit_backends.gpu.kernels.attention_scores import BOOL_MASK, FLOAT_MASK, NO_MASK
from fusionkit_backends.gpu.kernels.attention_tiles import Pass, Tiles
from fusionkit_backends.gpu.kernels.named import launch_named

LEAST_PRODUCT = 16  # rows and columns of tl.dot's operands
CHUNK = 128  # blocks that a program of attending_blocks judges at once


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
    def mask_kind(self) -> int:
        if self.attn_mask is None:
            return NO_MASK
        return BOOL_MASK if str(self.attn_mask.dtype).endswith("bool") else FLOAT_MASK

    @property
    def num_bounds(self) -> int:
        return 0 if self.startend_row_indices is None else int(self.startend_row_indices.shape[3])

    @property
    def in_parts(self) -> bool:
        """Whether the backward reads lse as two addends, for which their rounded sum would not do."""
        return self.mask_kind == FLOAT_MASK or self.q.element_size() == 4

    @property
    def passes(self) -> tuple[bool, ...]:
        """CAREFUL of each launch: where pairs can be dropped, a second one mends what is not finite."""
        drops = self.causal or self.attn_mask is not None or self.startend_row_indices is not None
        spills = self.q.element_size() == 4 and self.q.shape[3] > 128  # whatever the tiles
        return (False, True) if drops and not spills else (False,)

    def tiles_of(self, direction: Pass, careful: bool = False) -> Tiles:
        head_dim, itemsize = self.q.shape[3], self.q.element_size()
        if careful:
            return attention_tiles.choose_careful(direction, head_dim, itemsize)
        return self.tiles(direction, head_dim, itemsize, self.attn_mask is not None)

    def described(self) -> dict[str, Any]:
        """What every attention kernel is told. Absent tensors have stand-ins, and strides of axes of size 1 are 0."""
        mask, bounds = self.attn_mask, self.startend_row_indices
        strides = (0, 0, 0, 0) if mask is None else mask.stride()
        return {
            "q": self.q,
            "k": self.k,
            "v": self.v,
            **strides_of("q", self.q),
            **strides_of("k", self.k),
            **strides_of("v", self.v),
            "mask": self.q if mask is None else mask,
            "mask_batch": 0 if mask is None or mask.shape[0] == 1 else strides[0],
            "mask_head": 0 if mask is None or mask.shape[1] == 1 else strides[1],
            "mask_row": 0 if mask is None or mask.shape[2] == 1 else strides[2],
            "mask_column": strides[3],
            "bounds": self.q if bounds is None else bounds,
            "bound_heads": 1 if bounds is None else bounds.shape[1],
            "MASK": self.mask_kind,
            "NUM_BOUNDS": self.num_bounds,
            "CAUSAL": self.causal,
            "IN_PARTS": self.in_parts,
            "q_len": self.q.shape[1],
            "kv_len": self.k.shape[1],
            "num_heads": self.q.shape[2],
            "num_key_value_heads": self.k.shape[2],
            "head_dim": self.q.shape[3],
        }


def strides_of(name: str, tensor: Any) -> dict[str, int]:
    batch, row, head, _ = tensor.stride()
    return {f"{name}_batch": batch, f"{name}_row": row, f"{name}_head": head}


def block_constants(tiles: Tiles, head_dim: int) -> dict[str, Any]:
    block_d = max(LEAST_PRODUCT, triton.next_power_of_2(head_dim))
    return {
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
        "BLOCK_D": block_d,
        "PADDED_D": block_d != head_dim,
        "num_warps": tiles.num_warps,
        "num_stages": tiles.num_stages,
    }


def listed_blocks(problem: Problem, tiles: Tiles, by_query: bool) -> dict[str, Any]:
    """Lists of the blocks that attend, for each block of queries or of keys; stand-ins without bounds."""
    bounds = problem.startend_row_indices
    if bounds is None:
        return {"blocks": problem.q, "counts": problem.q, "max_blocks": 0}
    batch_size, bound_heads, kv_len, num_bounds = bounds.shape
    heads, q_len = batch_size * bound_heads, problem.q.shape[1]
    num_query_blocks, num_key_blocks = triton.cdiv(q_len, tiles.block_m), triton.cdiv(kv_len, tiles.block_n)
    programs, listed = (num_query_blocks, num_key_blocks) if by_query else (num_key_blocks, num_query_blocks)
    extremes = problem.empty((heads, num_key_blocks, num_bounds, 2), "int32")
    blocks, counts = problem.empty((heads, programs, listed), "int32"), problem.empty((heads, programs), "int32")
    shared = {"extremes": extremes, "kv_len": kv_len, "num_key_blocks": num_key_blocks}
    shared |= {"NUM_BOUNDS": num_bounds, "BLOCK_N": tiles.block_n}
    launch_named(attention_blocks.bound_extremes_kernel, (heads * num_key_blocks,), bounds=bounds, **shared)
    launch_named(
        attention_blocks.attending_blocks_kernel,
        (heads * programs,),
        **shared,
        blocks=blocks,
        counts=counts,
        q_len=q_len,
        num_listed=listed,
        num_programs=programs,
        CAUSAL=problem.causal,
        BY_QUERY=by_query,
        BLOCK_M=tiles.block_m,
        CHUNK=CHUNK,
    )
    return {"blocks": blocks, "counts": counts, "max_blocks": listed}


def forward(problem: Problem) -> tuple[Any, Any, Any]:
    """(out [batch_size, q_len, num_heads, head_dim], lse [batch_size, num_heads, q_len] float32, what backward reads in
    its place), all dense."""
    batch_size, q_len, num_heads, head_dim = problem.q.shape
    out = problem.empty(tuple(problem.q.shape), "q")
    lse = problem.empty((batch_size, num_heads, q_len), "float32")
    parts = problem.empty((*lse.shape, 2), "float32") if problem.in_parts else lse
    for careful in problem.passes:
        tiles = problem.tiles_of("forward", careful)
        launch_named(
            attention_forward.attention_forward_kernel,
            (triton.cdiv(q_len, tiles.block_m) * batch_size * num_heads,),
            **problem.described(),
            **listed_blocks(problem, tiles, by_query=True),
            out=out,
            lse=lse,
            parts=parts,
            scale=abs(problem.scale),
            NEGATIVE=problem.scale < 0,
            CAREFUL=careful,
            **block_constants(tiles, head_dim),
        )
    return out, lse, parts


def backward(problem: Problem, results: tuple[Any, Any, Any], dout: Any, dlse: Any) -> tuple[Any, Any, Any]:
    """(dq, dk, dv), dense. results: forward's. dlse, which may be None, and dout's last axis are dense."""
    out, lse, parts = results
    shared = {
        **problem.described(),
        **strides_of("dout", dout),
        "dout": dout,
        "lse": parts,
        "delta": _delta(problem, out, lse, dout, dlse),
        "scale": problem.scale,
    }
    return (_dq(problem, shared), *_dk_dv(problem, shared))


def _delta(problem: Problem, out: Any, lse: Any, dout: Any, dlse: Any) -> Any:
    batch_size, q_len, num_heads, head_dim = problem.q.shape
    delta, tiles = problem.empty((batch_size, num_heads, q_len), "float32"), problem.tiles_of("dq")
    constants = block_constants(tiles, head_dim)
    del constants["BLOCK_N"]
    launch_named(
        attention_backward.attention_delta_kernel,
        (triton.cdiv(q_len, tiles.block_m) * batch_size * num_heads,),
        out=out,
        dout=dout,
        lse=lse,
        dlse=lse if dlse is None else dlse,
        delta=delta,
        **strides_of("dout", dout),
        q_len=q_len,
        num_heads=num_heads,
        head_dim=head_dim,
        HAS_DLSE=dlse is not None,
        **constants,
    )
    return delta


def _dq(problem: Problem, shared: dict[str, Any]) -> Any:
    batch_size, q_len, num_heads, head_dim = problem.q.shape
    dq = problem.empty(tuple(problem.q.shape), "q")
    for careful in problem.passes:
        tiles = problem.tiles_of("dq", careful)
        launch_named(
            attention_backward.attention_dq_kernel,
            (triton.cdiv(q_len, tiles.block_m) * batch_size * num_heads,),
            **shared,
            **listed_blocks(problem, tiles, by_query=True),
            dq=dq,
            CAREFUL=careful,
            **block_constants(tiles, head_dim),
        )
    return dq


def _dk_dv(problem: Problem, shared: dict[str, Any]) -> tuple[Any, Any]:
    batch_size, kv_len, heads, head_dim = problem.k.shape
    dk, dv = (problem.empty(tuple(problem.k.shape), "q") for _ in range(2))
    for careful in problem.passes:
        tiles = problem.tiles_of("dk_dv", careful)
        launch_named(
            attention_backward.attention_dk_dv_kernel,
            (triton.cdiv(kv_len, tiles.block_n) * batch_size * heads,),
            **shared,
            **listed_blocks(problem, tiles, by_query=False),
            dk=dk,
            dv=dv,
            CAREFUL=careful,
            **block_constants(tiles, head_dim),
        )
    return dk, dv

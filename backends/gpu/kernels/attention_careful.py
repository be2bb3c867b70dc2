"""A dropped pair has no influence, not even NaN. Shared by the kernels of attention, also over a paged cache.

Products multiply a dropped pair by 0, and 0 times NaN is NaN. So where pairs can be dropped a second launch, the
careful one, looks at each block that the first one left, and takes it again if it holds anything that is not finite.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def is_finite(x):
    return tl.abs(x.to(tl.float32)) < float("inf")


@triton.jit
def finite_part(x):
    return tl.where(is_finite(x), x, 0.0).to(x.dtype)


@triton.jit
def to_mend(made):
    """Whether a careful launch takes the block again: an earlier one made something of it that is not finite. A truth
    value: with a number in its place, 0 or 1, two kernels spilled."""
    return tl.min(tl.min(is_finite(made).to(tl.int32), 1), 0) == 0


@triton.jit
def without_dropped(acc, attended, rows):
    """(acc, rows) for `acc + weights rows`: the finite part of `rows` [N, D], and acc [M, D] with NaN in each row that
    attends [M, N] to one that is not finite. Which of its elements are not is not asked: products that would tell spill
    registers."""
    wrong = tl.max((is_finite(rows) == 0).to(tl.int32), 1)
    attends_wrong = tl.max(tl.where(attended, wrong[None, :], 0), 1) > 0
    return tl.where(attends_wrong[:, None], float("nan"), acc), finite_part(rows)

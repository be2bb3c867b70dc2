"""A toy device's own ops, on Paddle's CPU tensors. They take as little as devices do, and fail where devices fail."""

from __future__ import annotations

import math

import numpy as np
import paddle


def require(holds, rule):
    """`holds` is called where there are values and sizes: not while a graph is traced."""
    if paddle.in_dynamic_mode() and not holds():
        raise RuntimeError(f"toy device: {rule}")


def attention(q, k, v, mask, causal):
    """Softmax attention. A row without any key is NaN, forward and backward.

    mask: None, bool (True = attend), or floating, added to the scores: [batch_size or 1, heads or 1, q_len, kv_len].
    """
    require(lambda: all(tensor.size for tensor in (q, k, v)), "nothing to launch")
    require(lambda: not causal or q.shape[1] == k.shape[1] and mask is None, "causal is square, and without a mask")
    require(lambda: mask is None or mask.shape[2:] == [q.shape[1], k.shape[1]], "a mask is [.., q_len, kv_len]")
    require(lambda: mask is None or not bool(paddle.isinf(mask.astype("float32")).any()), "a mask is finite")
    queries, keys, values = (x.transpose([0, 2, 1, 3]) for x in (q, k, v))
    group = q.shape[2] // k.shape[2]
    keys, values = (x.repeat_interleave(group, axis=1) for x in (keys, values))
    scores = queries @ keys.transpose([0, 1, 3, 2]) / math.sqrt(q.shape[3])
    if causal:
        mask = paddle.ones([1, 1, q.shape[1], k.shape[1]], "bool").tril()
    if mask is not None and mask.dtype == paddle.bool:
        scores = paddle.where(mask, scores, paddle.full([], -np.inf))
    elif mask is not None:
        scores = scores + mask
    exponents = paddle.exp(scores - scores.max(-1, keepdim=True))
    return (exponents / exponents.sum(-1, keepdim=True) @ values).transpose([0, 2, 1, 3])


def norm(x, weight, epsilon):
    """y in float64, so that only its rounding is seen."""
    require(lambda: x.size and x.dtype == weight.dtype, "one dtype, and something to launch")
    wide = x.astype("float64")
    return (wide * paddle.rsqrt((wide * wide).mean(-1, keepdim=True) + epsilon) * weight.astype("float64")).astype(
        x.dtype
    )


def rope(x, cos, sin):
    """Halves are rotated. x: [batch_size, tokens, heads, head_dim]; cos, sin: [1, tokens, 1, head_dim]; float32."""
    require(lambda: x.size and x.dtype == paddle.float32, "float32, and something to launch")
    require(lambda: cos.shape == sin.shape == [1, x.shape[1], 1, x.shape[3]], "a row of angles for each token")
    first, second = paddle.chunk(x, 2, axis=-1)
    return x * cos + paddle.concat([-second, first], axis=-1) * sin

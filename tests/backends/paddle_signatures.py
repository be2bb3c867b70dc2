"""The functions of Paddle that gpu and xpu call: signatures as recorded from Paddle 3.3.1, and what their documents say
that they compute, in Paddle's own ops. Only a Paddle built for those cards can run the functions themselves."""

from __future__ import annotations

import importlib
import inspect
import math

import paddle
from paddle.nn import functional as F

PADDLE_VERSION = "3.3.1"
RECORDED = {
    "paddle.incubate.nn.functional:fused_rms_norm_ext": "(x, scale, epsilon=1e-05, name=None)",
    "paddle.incubate.nn.functional:fused_rotary_position_embedding": (
        "(q, k=None, v=None, sin=None, cos=None, position_ids=None, use_neox_rotary_style=True, time_major=False,"
        " rotary_emb_base=10000.0)"
    ),
    "paddle.incubate.nn.functional:swiglu": "(x, y=None, name=None)",
    "paddle.incubate.nn.functional:fused_linear": "(x, weight, bias=None, transpose_weight=False, name=None)",
    "paddle.nn.functional.flash_attention:flash_attention": (
        "(query, key, value, dropout=0.0, causal=False, return_softmax=False, *, fixed_seed_offset=None, rng_name='',"
        " training=True, name=None, softmax_scale=None)"
    ),
    "paddle.nn.functional.flash_attention:flashmask_attention": (
        "(query, key, value, startend_row_indices=None, *, dropout=0.0, causal=False, window_size=None,"
        " return_softmax_lse=False, return_seed_offset=False, fixed_seed_offset=None, rng_name='', training=True,"
        " name=None, softmax_scale=None, block_mask=None)"
    ),
    "paddle.nn.functional:scaled_dot_product_attention": (
        "(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, training=True, backend=None, scale=None,"
        " enable_gqa=True, name=None)"
    ),
}
# Of a package that is not Paddle's; as PaddleNLP 3.0.0b4 calls it.
XPU_RMS_NORM = inspect.Signature(
    [inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY) for name in ("x", "weight", "epsilon")]
)


def function(reference):
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def signature(reference):
    """Names, kinds and defaults; annotations differ between overloads."""
    found = inspect.signature(function(reference))
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in found.parameters.values()]
    return inspect.Signature(plain)


def rms_norm(x, scale, epsilon, name=None):
    rstd = paddle.rsqrt((x * x).mean(-1, keepdim=True) + epsilon)
    return x * rstd * scale, rstd.squeeze(-1)


def rope(q, k, v, sin, cos, position_ids, use_neox_rotary_style, time_major, rotary_emb_base):
    assert v is None and position_ids is None and not time_major
    assert sin.shape == cos.shape == [1, q.shape[1], 1, q.shape[3]] and sin.dtype == q.dtype

    def rotated(x):
        first, second = (x[..., 0::2], x[..., 1::2]) if use_neox_rotary_style else paddle.chunk(x, 2, axis=-1)
        turned = paddle.stack([-second, first], axis=-1 if use_neox_rotary_style else -2).flatten(-2)
        return x * cos + turned * sin

    return rotated(q), rotated(k), None


def linear(x, weight, bias, transpose_weight, name):
    assert not transpose_weight
    return F.linear(x, weight, bias)


def flashmask(query, key, value, startend_row_indices, causal, **rest):
    """Rows that see no key give zeros here; the contract is silent."""
    import fusionkit as fk

    with fk.use_backend("eager"):
        return fk.flash_attention(query, key, value, startend_row_indices=startend_row_indices, causal=causal)


def attention(query, key, value, attn_mask, is_causal, **rest):
    """A row of -inf alone is NaN, as a softmax gives it; causal is for one length only."""
    assert not (is_causal and query.shape[1] != key.shape[1])
    group = query.shape[2] // key.shape[2]
    key, value = (paddle.repeat_interleave(x, group, axis=2) for x in (key, value))
    scores = paddle.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(query.shape[3])
    if attn_mask is not None:
        scores = scores + attn_mask
    if is_causal:
        scores = scores + paddle.triu(paddle.full(scores.shape[-2:], -math.inf), 1)
    return paddle.einsum("bhqk,bkhd->bqhd", F.softmax(scores, axis=-1), value)


def flash(query, key, value, causal, return_softmax, **rest):
    assert not return_softmax
    return attention(query, key, value, None, causal), None


DOCUMENTED = {
    "paddle.incubate.nn.functional:fused_rms_norm_ext": rms_norm,
    "paddle.incubate.nn.functional:fused_rotary_position_embedding": rope,
    "paddle.incubate.nn.functional:swiglu": lambda x, y, name: x * F.sigmoid(x) * y,
    "paddle.incubate.nn.functional:fused_linear": linear,
    "paddle.nn.functional.flash_attention:flash_attention": flash,
    "paddle.nn.functional.flash_attention:flashmask_attention": flashmask,
    "paddle.nn.functional:scaled_dot_product_attention": attention,
}

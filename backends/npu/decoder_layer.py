"""What the passes put in: the vendor's ops for inference, their arguments in the vendor's layout, and what they need.

The vendor's layer op takes rows in prefill, whole and from position 0, and rows in decode, of one token. It does not
look at position_ids and last_tokens. So `unlike_rows` compares them with the lengths, on the host, before the layers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle

from fusionkit.frameworks import custom_device

_OP = "fused_blha_layer_op"


def decoder_layer(
    x: Any,
    seq_lens_this_time: Any,
    seq_lens_encoder: Any,
    seq_lens_decoder: Any,
    block_tables: Any,
    angles: Any,
    key_cache: Any,
    value_cache: Any,
    norm_weight: Any,
    qkv_weight: Any,
    qkv_bias: Any,
    out_weight: Any,
    ffn_norm_weight: Any,
    ffn1_weight: Any,
    ffn2_weight: Any,
    *,
    flag: int,
    epsilon: float,
    interleaved: bool,
) -> Any:
    """One decoder layer with its residual sums; the caches are written in place.

    Args:
        x: [tokens, hidden_size] float16, read if flag is 1. The device hands the tokens of a step from layer to layer.
        angles: as `angles` gives them.
        flag: 1 in the first layer, 2 in the last, else 0.

    Returns:
        [rows, hidden_size] float16, of each row's last token, if flag is 2; else nothing that may be read.
    """
    out, ffn1, ffn2 = (out_weight, None, None, None), (ffn1_weight, None), (ffn2_weight, None, None, None)
    weights = (norm_weight, qkv_weight, qkv_bias, None, *out, ffn_norm_weight, *ffn1, *ffn2)
    lengths = (seq_lens_encoder, seq_lens_decoder, seq_lens_this_time)
    sizes = (int(angles.shape[2]), int(key_cache.shape[2]))
    unquantised, untransposed = (1.0,) * 4, (False,) * 4
    attributes = (flag, *sizes, epsilon, *unquantised, *untransposed, not interleaved, False)
    inputs = (x, *weights, angles, key_cache, value_cache, *lengths, block_tables)
    return custom_device.run(_OP, inputs, *attributes)[0]


def lm_head(x: Any, norm_weight: Any, weight: Any, *, epsilon: float) -> Any:
    """Scores [rows, vocab_size] float16 of x [rows, hidden_size]: norm and product, on one card."""
    trans_weight, rank, nranks, root, ring_id = False, 0, 1, 0, 0
    attributes = (epsilon, trans_weight, rank, nranks, root, ring_id)
    return custom_device.run("lm_head", (x, norm_weight, weight), *attributes)[0]


def remove_padding(ids: Any, seq_lens_this_time: Any) -> Any:
    """The first of ids [tokens]: as many as the rows have. A caller may round the number of tokens up."""
    total = seq_lens_this_time.sum().cast("int32").reshape([1])
    return custom_device.run("remove_padding", (ids.reshape([1, -1]), total))[0]


def rebuild_padding(x: Any, this_time: Any, encoder: Any, decoder: Any) -> Any:
    """[rows, hidden_size]: x [tokens, hidden_size] of each row's last token."""
    num_tokens, counts = int(x.shape[0]), this_time.numpy()
    starts = np.cumsum(counts) - counts
    offsets = np.arange(len(counts)) * num_tokens - starts  # the vendor counts from rows of num_tokens, padded
    inputs = (x, paddle.to_tensor(offsets.astype(np.int32), place=x.place), decoder, encoder)
    return custom_device.run("rebuild_padding_v2", inputs, num_tokens)[0]


def unlike_rows(this_time: Any, encoder: Any, decoder: Any, last_tokens: Any, position_ids: Any = None) -> str | None:
    """Why the vendor's ops would compute something else than what these tensors ask for; None if they would not."""
    counts, prompts, cached = (lengths.numpy() for lengths in (this_time, encoder, decoder))
    if not np.array_equal(counts, np.where(prompts > 0, prompts, cached > 0)):
        return "a row goes on with several tokens, and the vendor's op takes prompts whole"
    if not np.array_equal(last_tokens.numpy(), np.cumsum(counts) - 1):
        return "last_tokens are not the rows' last, which the vendor's op chooses"
    firsts = np.where(prompts > 0, 0, cached)
    wanted = [np.arange(first, first + count) for first, count in zip(firsts, counts, strict=True)]
    if position_ids is None or np.array_equal(position_ids.numpy()[: counts.sum()], np.concatenate(wanted)):
        return None
    return "position_ids do not count on from the cached tokens, from which the vendor's op counts"


def angles(cos: Any, sin: Any, *, interleaved: bool) -> Any:
    """[2, 1, max_position, 1, head_dim] float32 of cos and sin [max_position, head_dim / 2], each angle twice."""

    def twice(table: Any) -> Any:
        return table.repeat_interleave(2, axis=-1) if interleaved else paddle.concat([table, table], axis=-1)

    return paddle.stack([twice(cos), twice(sin)]).unsqueeze([1, 3])


def half(weight: Any) -> Any:
    """In float16, which the vendor's ops take alone. A norm's weight of a 16-bit model is not rounded by it."""
    return weight.cast("float16")


def zeros_like(weight: Any) -> Any:
    return paddle.zeros_like(weight)

"""warmup compiles what a step launches, whatever its number of tokens. Judged by the programs that Triton would tell
apart, without a card; how long compiling takes is a card's to say."""

from __future__ import annotations

import dataclasses

import pytest
from fusionkit_backends.gpu import warmup
from fusionkit_backends.gpu.kernels import ahead_of_time, card

from fusionkit.spec import TensorSpec

LLAMA = dict(hidden_size=5120, intermediate_size=13824, num_attention_heads=40, head_dim=128, vocab_size=32000)


def with_tokens(calls, batch_size, tokens):
    """The calls for another number of tokens."""

    def resized(value):
        if not isinstance(value, TensorSpec) or value.shape[:1] != (1,):
            return value
        sizes = [tokens if size == 2048 else size for size in value.shape[1:]]
        return dataclasses.replace(value, shape=(batch_size, *sizes))

    return [(op, {name: resized(value) for name, value in arguments.items()}) for op, arguments in calls]


def programs(calls):
    with card.assumed(card.H100):
        return {variant.key for variant in ahead_of_time.variants(warmup.launches(calls), 90)}


@pytest.mark.parametrize(
    "settings", [{}, {"weight_dtype": "float32"}, {"positions": True, "num_key_value_heads": 8, "packed": True}]
)
def test_a_step_of_any_length_compiles_nothing_more(settings):
    calls = warmup.llama_calls(**LLAMA, **settings)
    warm = programs(calls)
    assert len(warm) >= 8
    for batch_size, tokens in ((1, 16384), (1, 777), (3, 512), (1, 1), (2, 8191)):
        assert programs(with_tokens(calls, batch_size, tokens)) <= warm, (batch_size, tokens)


def test_another_width_is_another_program():
    """So that the test above can fail."""
    calls = warmup.llama_calls(**LLAMA)
    assert not programs(warmup.llama_calls(**{**LLAMA, "hidden_size": 4096})) <= programs(calls)

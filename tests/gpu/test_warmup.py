"""warmup compiles what a step launches, whatever its number of tokens. Judged by the programs that Triton would tell
apart, without a card; how long compiling takes is a card's to say."""

from __future__ import annotations

import dataclasses

import pytest
from fusionkit_backends.gpu import warmup
from fusionkit_backends.gpu.kernels import ahead_of_time, card
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

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


class NoCard:
    """What Triton asks of a driver before it compiles; nothing can be loaded or launched."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def compiler_for_a_card_that_is_not_there(monkeypatch):
    monkeypatch.setattr(driver, "_active", NoCard())
    with card.assumed(card.H100):
        yield


def test_warmup_compiles_each_program_once(compiler_for_a_card_that_is_not_there):
    """Through Triton's own cache: what warmup compiled is there for a step of another length, and is counted."""
    norm = (
        "fusion_rms_norm",
        {"x": TensorSpec((1, 2048, 1024), "bfloat16"), "weight": TensorSpec((1024,), "bfloat16")},
    )
    assert warmup.warmup([norm]).num_programs == 3  # forward, gradient, sum of the gradient's parts
    assert warmup.warmup(with_tokens([norm], 3, 777)).num_programs == 0
    half = ("fusion_rms_norm", {name: dataclasses.replace(spec, dtype="float16") for name, spec in norm[1].items()})
    with warmup.compilations() as compiled:
        warmup.warmup([half], training=False)
    assert compiled == ["rms_norm_kernel"]

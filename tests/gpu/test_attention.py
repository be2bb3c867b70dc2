"""The gpu backend's attention beyond the parity cases, in Triton's interpreter: not run on hardware."""

from __future__ import annotations

import fusionkit_backends.gpu
import pytest
import torch
from fusionkit_backends.gpu import attention_choice
from fusionkit_backends.gpu.kernels import attention_tiles

import fusionkit as fk
from fusionkit import arguments, parity
from fusionkit.call import describe
from fusionkit.frameworks import torch as torch_arrays

CHECKS = "tests.gpu.attention_checks:"


@pytest.mark.parametrize("what", ("key block", "dk", "split"))
def test_planted_mistakes_do_not_pass(what, interpreter):
    interpreter(call=CHECKS + "planted", what=what)


@pytest.mark.parametrize(
    "check",
    (
        "lists_hold_what_attends",
        "only_lse_has_a_gradient",
        "invalid_calls",
        "differentiable_once",
        "decoder_layer_is_right",
        "recorded_rows_have_no_values",
    ),
)
def test_interpreted(check, interpreter):
    interpreter(call=CHECKS + check)


def test_strides_change_no_bit(interpreter):
    interpreter(call=CHECKS + "strides", dtype="bfloat16")


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_a_dropped_key_has_no_influence(dtype, interpreter):
    interpreter(call=CHECKS + "dropped_keys", dtype=dtype)


def test_a_later_token_reaches_no_earlier_one_in_a_cache(interpreter):
    interpreter(call=CHECKS + "later_tokens_of_a_cache")


def test_the_note_and_the_choice_agree():
    """`explain` says that the framework's own attention runs exactly where it is called."""
    judged = set()
    for case in fk.flash_attention.spec.cases:
        if case.llama:
            continue
        for dtype in ("float32", "bfloat16"):
            made = parity.arguments_of(fk.flash_attention.spec, case, dtype)
            call = describe(fk.flash_attention.spec, *arguments.bind(fk.flash_attention.spec, (), made))
            q, k = (torch_arrays.from_numpy(made[name], "cpu") for name in "qk")
            masks = tuple(made.get(name) is not None or None for name in ("attn_mask", "startend_row_indices"))
            chosen = attention_choice.is_plain(
                q, k, made.get("causal", False), masks, made.get("scale"), made.get("return_lse", False)
            )
            assert bool(attention_choice.PLAIN.judge(call)) == chosen, (case.name, dtype)
            judged.add(chosen)
    assert judged == {True, False}


def test_explain_names_what_runs():
    q = torch.ones(1, 8, 2, 16, dtype=torch.bfloat16)

    def said(**more):
        return str(fk.flash_attention.explain(q, q, q, causal=True, device="cuda:0", training=True, **more))

    assert attention_choice.PLAIN_NOTE in said()
    assert attention_choice.PLAIN_NOTE not in said(scale=0.3)
    assert attention_choice.SETTING in fusionkit_backends.gpu.backend.settings


def test_every_pass_and_head_dim_has_blocks_that_a_product_takes():
    for table in (*attention_tiles.SIXTEEN_BITS.values(), attention_tiles.MASKED, attention_tiles.FLOAT32):
        assert len(table) == 9
        assert all(min(tiles.block_m, tiles.block_n) >= 16 for tiles in table.values())
    padded = attention_tiles.SIXTEEN_BITS.values()
    assert all(tiles.block_n >= 32 for table in padded for tiles in table.values())


def test_the_framework_gets_dense_rows(monkeypatch):
    """Its fused kernels take no strided last axis, and fusionkit allows them no other."""
    from fusionkit_backends.gpu.autograd import flash_attention

    q = torch.randn(2, 4, 3, 16)[..., ::2]
    seen, real = [], torch.nn.functional.scaled_dot_product_attention

    def noted(*tensors, **settings):
        seen.extend(tensor.stride(-1) for tensor in tensors)
        return real(*tensors, **settings)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    monkeypatch.setattr(flash_attention, "_preferred", lambda device: [flash_attention.SDPBackend.MATH])
    out = flash_attention.frameworks_own(q, q, q, True)
    assert out.shape == q.shape and seen == [1, 1, 1]


def test_the_framework_is_never_called_on_the_host():
    q = torch.zeros(1, 4, 1, 8, dtype=torch.bfloat16)
    assert attention_choice.is_plain(q, q, True, (None, None), None, False)
    assert not attention_choice.is_for_the_framework(q, True)

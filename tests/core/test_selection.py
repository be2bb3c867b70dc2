"""Which backend runs a call, and what explain, the ledger and the errors say of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import fusionkit as fk
from fusionkit import cli, registry
from fusionkit.capability import Absent, Between, MultipleOf, OneOf, Present, When
from fusionkit.spec import TensorSpec
from tests.core import toy

X, WEIGHT = np.ones((2, 64), np.float32), np.ones(64, np.float32)
ON_TOY = TensorSpec((2, 64), "float32", "toy:0"), TensorSpec((64,), "float32", "toy:0")


@pytest.fixture
def op():
    """An op without decisions remembered by other tests."""
    return fk.Op("fusion_rms_norm")


def test_a_devices_own_backend_comes_before_eager(install, op):
    install(toy.backend())
    explanation = op.explain(*ON_TOY)
    assert explanation.chosen == "toy" and explanation.reason == "chosen"
    verdicts = {name: verdict for name, verdict, _ in explanation.candidates}
    assert (verdicts["cpu"], verdicts["eager"], verdicts["toy"]) == ("no", "yes", "yes")
    assert "cpu    no       tensors are on toy:0" in str(explanation)


def test_a_devices_own_backend_comes_before_others_that_are_installed_later(install, op):
    """The own one carries the device's name, or that of another device which it takes; the alphabet decides nothing."""
    install(toy.backend(name="a_toy", device_types=("cpu",)))
    explanation = op.explain(X, WEIGHT)
    assert (explanation.chosen, explanation.reason) == ("cpu", "chosen")
    after = """tried after cpu, the device's own; fusionkit.use_backend("a_toy") prefers it"""
    assert ("a_toy", "yes", (after,)) in explanation.candidates
    with fk.use_backend("a_toy"):
        assert op(X, WEIGHT) == "toy ran" and after not in str(op.explain(X, WEIGHT))


def test_the_own_backend_of_a_device_with_two_names_is_own_under_both(install, op):
    own = toy.backend(name="toy", device_types=("toy", "bead"))
    install(own, toy.backend(name="a_toy", device_types=("toy", "bead")))
    assert op.explain(X, WEIGHT, device="toy").chosen == op.explain(X, WEIGHT, device="bead").chosen == "toy"
    install(toy.backend(name="bead", device_types=("bead",)))
    assert op.explain(X, WEIGHT, device="bead").chosen == "bead"


def test_of_two_that_are_not_the_devices_own_the_alphabet_decides(install, op):
    install(toy.backend(name="b_toy", device_types=("bead",)), toy.backend(name="a_toy", device_types=("bead",)))
    explanation = op.explain(X, WEIGHT, device="bead")
    assert explanation.chosen == "a_toy" and "tried after" not in str(explanation)


def test_a_plugin_that_did_not_load_stands_after_the_devices_own(monkeypatch, op):
    broken = registry.Plugin("a_toy", "a_toy-package 1.0", None, "RuntimeError: no driver here")
    plugins = tuple(sorted((*registry.plugins(), broken), key=lambda plugin: plugin.name))
    monkeypatch.setattr(registry, "plugins", lambda: plugins)
    assert op.explain(X, WEIGHT).reason == "chosen"
    assert op.explain(X, WEIGHT, device="npu").reason == "chosen"
    missed = fk.Op("swiglu").explain(X, X, device="npu")
    assert missed.chosen == "eager" and "a_toy: not available: RuntimeError: no driver here" in missed.reason


@pytest.mark.parametrize("wish", ["gpu", "npu", "xpu", ["gcu", "gpu"]])
def test_a_refused_wish_is_told_of_the_first_backend_that_says_yes(op, wish):
    with fk.use_backend(wish), pytest.raises(fk.NoBackendError) as caught:
        op(X, WEIGHT)
    assert str(caught.value).endswith('\nUse fusionkit.use_backend("cpu") to run there.')


def test_no_backend_is_advised_where_none_says_yes(op):
    x, weight = torch.ones(2, 64), torch.ones(64)
    with pytest.raises(fk.NoBackendError) as caught:
        op(x, weight)
    assert "use_backend" not in str(caught.value) and "eager: takes paddle tensors, got torch" in str(caught.value)


def test_a_refusal_falls_back_to_eager_and_is_counted_with_its_reason(prefer, op):
    prefer(toy.backend(device_types=("cpu",), name="a_toy", when=(MultipleOf("hidden_size", 48),)))
    op(X, WEIGHT)
    reason = "fallback: a_toy: hidden_size must be a multiple of 48, got 64"
    assert fk.ledger()[("fusion_rms_norm", "cpu", reason)] == 1
    assert op(np.ones((2, 48), np.float32), np.ones(48, np.float32)) == "toy ran"


def test_an_op_that_the_device_does_not_have_is_not_a_fallback(prefer, op):
    bare = fk.Backend(name="a_toy", device_types=("cpu",), kernels={})
    prefer(bare)
    op(X, WEIGHT)
    reason = "not offered: a_toy: a_toy does not have fusion_rms_norm"
    assert fk.ledger()[("fusion_rms_norm", "cpu", reason)] == 1


def test_an_explicit_name_is_strict_and_the_error_lists_every_candidate(install, op):
    install(toy.backend())
    with fk.use_backend("toy"), pytest.raises(fk.NoBackendError) as caught:
        op(X, WEIGHT)
    text = str(caught.value)
    assert text.startswith("fusion_rms_norm: toy (use_backend) does not accept this call (device cpu, inference")
    assert "\n  toy: tensors are on cpu" in text and 'use_backend("cpu")' in text
    (entry,) = fk.ledger()
    assert entry[1] == "none" and entry[2].startswith("refused: ")


def test_a_list_is_its_own_order_of_fallback(install, op):
    install(toy.backend())
    with fk.use_backend(["toy", "cpu"]):
        op(X, WEIGHT)
    assert fk.ledger()[("fusion_rms_norm", "cpu", "fallback: toy: tensors are on cpu")] == 1


def test_forward_only_is_refused_for_training(install, op):
    install(toy.backend(directions=("forward",)))
    assert op.explain(*ON_TOY, training=False).chosen == "toy"
    refused = op.explain(*ON_TOY, training=True)
    assert refused.chosen == "eager"
    assert ("toy", "no", ("forward only: gradients are wanted",)) in refused.candidates


def test_unknown_is_chosen_only_on_request(install, op):
    install(toy.backend(when=(Between("hidden_size", 16, 65535),)))
    x = TensorSpec((2, -1), "float32", "toy:0")
    weight = TensorSpec((-1,), "float32", "toy:0")
    reason = "hidden_size must be in [16, 65535), and hidden_size is not known while tracing"
    explanation = op.explain(x, weight)
    assert explanation.chosen == "eager" and ("toy", "unknown", (reason,)) in explanation.candidates
    assert op.explain(x, weight, backend="toy").chosen == "toy"


def test_an_unavailable_backend_says_why(prefer, op):
    prefer(toy.backend(available=lambda: "the driver is missing", device_types=("cpu",), name="a_toy"))
    op(X, WEIGHT)
    assert fk.ledger()[("fusion_rms_norm", "cpu", "fallback: a_toy: not available: the driver is missing")] == 1
    status = next(status for status in fk.backends() if status.name == "a_toy")
    assert not status.available and status.reason == "the driver is missing"


def test_a_question_about_a_device_elsewhere_is_answered_by_what_is_declared(install, op):
    install(toy.backend(available=lambda: "the driver is missing", when=(MultipleOf("hidden_size", 32),)))
    accepted, refused = (
        op.explain(*ON_TOY),
        op.explain(np.ones((2, 48), np.float32), np.ones(48, np.float32), device="toy"),
    )
    assert accepted.chosen == "toy" and refused.chosen == "eager"
    assert ("toy", "yes", ("not on this machine: the driver is missing",)) in accepted.candidates
    assert ("toy", "no", ("hidden_size must be a multiple of 32, got 48",)) in refused.candidates


def test_a_kernel_alone_may_be_unavailable(prefer, op):
    kernel = fk.Kernel({"numpy": toy.REFERENCE}, available=lambda: "the driver has no such op")
    prefer(fk.Backend("a_toy", ("cpu",), {"fusion_rms_norm": kernel}))
    op(X, WEIGHT)
    assert fk.ledger()[("fusion_rms_norm", "cpu", "fallback: a_toy: not available: the driver has no such op")] == 1


def test_a_gap_may_say_why(prefer, op):
    prefer(fk.Backend("a_toy", ("cpu",), {}, gaps={"fusion_rms_norm": "beads cannot divide"}))
    op(X, WEIGHT)
    reason = "not offered: a_toy: a_toy does not have fusion_rms_norm: beads cannot divide"
    assert fk.ledger()[("fusion_rms_norm", "cpu", reason)] == 1


@pytest.mark.parametrize("said, words", [({"proven_on": "none"}, "not run"), ({}, "proof not stated")])
def test_what_nobody_ran_or_vouches_for_says_so_wherever_it_is_named(install, op, capsys, said, words):
    install(fk.Backend("toy", ("toy",), toy.backend().kernels, **said))
    assert ("toy", "yes", (words,)) in op.explain(*ON_TOY).candidates
    assert any(str(status).startswith(f"toy (toy-package 1.0): {words}; ") for status in fk.backends())
    cli.main(["ops"])
    assert f"toy ({words})" in capsys.readouterr().out


@pytest.mark.parametrize("says, shown", [(lambda: "borrowed", "toy:0 (borrowed)"), (lambda: None, "toy:0")])
def test_a_backend_says_what_stands_in_for_its_device(install, op, says, shown):
    install(replace(toy.backend(), stand_in=says))
    explanation = op.explain(*ON_TOY)
    assert f"(device {shown}," in str(explanation)
    assert ("cpu", "no", (f"tensors are on {shown}",)) in explanation.candidates


def test_a_backend_that_cannot_say_what_stands_in_for_its_device_breaks_no_call(install, op):
    install(replace(toy.backend(), stand_in=lambda: 1 / 0))
    assert "(device toy:0 (unknown)," in str(op.explain(*ON_TOY))


def test_what_a_predicate_looked_at_is_looked_at_again(prefer, op):
    """A remembered decision holds for other sizes only if no predicate asked for the size."""
    prefer(
        toy.backend(
            device_types=("cpu",), name="a_toy", when=(MultipleOf("hidden_size", 64), OneOf("epsilon", (1e-5,)))
        )
    )
    assert op(X, WEIGHT) == "toy ran"
    assert op(np.ones((5, 64), np.float32), WEIGHT) == "toy ran"
    assert op(np.ones((2, 32), np.float32), np.ones(32, np.float32)).shape == (2, 32)
    assert op(X, WEIGHT) == "toy ran"
    assert op(X, WEIGHT, epsilon=1e-6).shape == (2, 64)
    assert op(X, WEIGHT, epsilon=1e-5) == "toy ran"


def test_an_inputs_own_size_is_looked_at_again(prefer):
    """A mask for each head has the shape of no named axis alone: the axis is heads or 1."""
    one_mask = When(Present("attn_mask"), OneOf("attn_mask.num_heads", (1,)))
    kernel = fk.Kernel({"numpy": "tests.core.toy:flash_attention"}, when=(one_mask,))
    prefer(fk.Backend("a_toy", ("cpu",), {"flash_attention": kernel}))
    op, q = fk.Op("flash_attention"), np.ones((1, 3, 2, 8), np.float32)
    shared, per_head = np.ones((1, 1, 3, 3), bool), np.ones((1, 2, 3, 3), bool)
    assert op(q, q, q, attn_mask=shared) == "toy ran"
    assert op(q, q, q, attn_mask=per_head).shape == q.shape
    assert op(q, q, q, attn_mask=shared) == "toy ran"


def test_dtype_and_absence_are_judged(install):
    install(
        toy.backend(dtypes=("bfloat16",)),
        fk.Backend(
            name="bare",
            device_types=("toy",),
            kernels={
                "fused_linear": fk.Kernel(
                    {"numpy": "fusionkit.eager.fused_linear:fused_linear"}, when=(Absent("bias"),)
                )
            },
        ),
    )
    assert ("toy", "no", ("x.dtype must be bfloat16, got float32",)) in fk.Op("fusion_rms_norm").explain(
        *ON_TOY
    ).candidates
    x, weight, bias = TensorSpec((2, 8), "float32"), TensorSpec((8, 4), "float32"), TensorSpec((4,), "float32")
    explain = fk.Op("fused_linear").explain
    assert ("bare", "no", ("bias is not supported",)) in explain(x, weight, bias, device="toy").candidates
    assert explain(x, weight, device="toy").chosen == "bare"


def test_bind_skips_dispatch_and_counting(op):
    kernel = op.bind(X, WEIGHT)
    np.testing.assert_allclose(kernel(X, WEIGHT), op.reference(X, WEIGHT), rtol=1e-6)
    assert not fk.ledger()


def test_tensors_on_two_devices_are_refused(op):
    with pytest.raises(ValueError, match="weight must be on toy:0, where x is, got toy:1"):
        op.explain(ON_TOY[0], TensorSpec((64,), "float32", "toy:1"))


def test_a_kernel_may_serve_one_framework_alone_by_another_kernel(install):
    functions = {"numpy": toy.REFERENCE}
    kernel = fk.Kernel(functions={}, for_framework={"numpy": fk.Kernel(functions=functions, directions=("forward",))})
    backend = fk.Backend(name="a_toy", device_types=("cpu",), kernels={"fusion_rms_norm": kernel})
    registry.check("a_toy", backend)
    install(backend)
    with fk.use_backend("a_toy"):
        assert fk.Op("fusion_rms_norm")(X, WEIGHT) == "toy ran"


def test_bounds_that_want_a_gradient_make_no_call_a_training_call(install):
    """The decision and its memory ask the same tensors: those that have a gradient."""
    paddle = pytest.importorskip("paddle")
    functions = {"paddle": "tests.core.toy:flash_attention"}
    kernels = {"flash_attention": fk.Kernel(functions=functions, directions=("forward",))}
    install(fk.Backend(name="a_toy", device_types=("cpu",), kernels=kernels))
    op, q, bounds = fk.Op("flash_attention"), paddle.ones([1, 2, 2, 8]), paddle.full([1, 1, 2, 1], 2, "int32")
    bounds.stop_gradient = False
    wanting = q.clone()
    wanting.stop_gradient = False
    with fk.use_backend(["a_toy", "cpu"]):
        for _ in range(2):
            assert op(q, q, q, causal=True, startend_row_indices=bounds) == "toy ran"
            assert not isinstance(op(wanting, q, q, causal=True, startend_row_indices=bounds), str)
        assert len(op._plans) == 2


def test_a_mask_of_bools_that_carries_the_mark_of_a_gradient_is_decided_once():
    """Paddle's cast to bool keeps the mark."""
    paddle = pytest.importorskip("paddle")
    op, q, mask = fk.Op("flash_attention"), paddle.ones([1, 2, 2, 8]), paddle.ones([1, 1, 2, 2], "bool")
    mask.stop_gradient = False
    with fk.use_backend("cpu"):
        for _ in range(3):
            op(q, q, q, attn_mask=mask)
    assert len(op._plans) == 1


def test_a_tensor_spec_beside_tensors_is_refused(op):
    with pytest.raises(TypeError, match="fusion_rms_norm: weight must be a tensor, got a TensorSpec"):
        op(X, TensorSpec((64,), "float32"))

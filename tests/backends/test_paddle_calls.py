"""gpu and xpu, which nobody has run: their kernels call Paddle's functions with arguments that the real signatures
take, and what those functions are documented to compute gives the op's result. This proves the call, not the card."""

from __future__ import annotations

import importlib
import sys
import types

import numpy as np
import paddle
import pytest

import fusionkit as fk
from fusionkit import arguments, comparison, frameworks, kernel_function, parity, registry, select
from fusionkit.call import describe
from tests.backends.paddle_signatures import DOCUMENTED, PADDLE_VERSION, RECORDED, XPU_RMS_NORM, rms_norm, signature

BACKENDS = {backend.name: backend for backend in registry.loaded()}
CALLS = {
    ("gpu", "fusion_rms_norm"): {"fused_rms_norm_ext"},
    ("gpu", "fusion_rope"): {"fused_rotary_position_embedding"},
    ("gpu", "flash_attention"): {"flash_attention", "flashmask_attention", "scaled_dot_product_attention"},
    ("gpu", "swiglu"): {"swiglu"},
    ("gpu", "fused_linear"): {"fused_linear"},
    ("xpu", "fusion_rms_norm"): {"xpu_rms_norm"},
    ("xpu", "fusion_rope"): {"fused_rotary_position_embedding"},
    ("xpu", "flash_attention"): {"scaled_dot_product_attention"},
}


@pytest.mark.parametrize("reference", RECORDED)
def test_the_recorded_signature_is_the_installed_paddles(reference):
    assert paddle.version.full_version == PADDLE_VERSION
    assert str(signature(reference)) == RECORDED[reference]


def test_every_kernel_of_gpu_and_xpu_is_called_here():
    kernels = {(name, op): kernel for name in ("gpu", "xpu") for op, kernel in BACKENDS[name].kernels.items()}
    through_paddle = {call for call, kernel in kernels.items() if "paddle" in kernel.functions}
    assert set(CALLS) == through_paddle - {("gpu", "fusion_add_rms_norm")}  # a Triton kernel: tests/gpu


@pytest.fixture
def called(monkeypatch):
    """Replaces each function by one that binds the arguments to the real signature, and computes what is documented."""
    names = set()

    def recorder(name, real, computed):
        def call(*args, **kwargs):
            bound = real.bind(*args, **kwargs)
            bound.apply_defaults()
            names.add(name)
            return computed(**bound.arguments)

        return call

    for reference, computed in DOCUMENTED.items():
        module, _, name = reference.partition(":")
        owner = importlib.import_module(module)
        monkeypatch.setattr(owner, name, recorder(name, signature(reference), computed))
    vendor = types.ModuleType("paddle_xpu_nn")
    vendor.xpu_rms_norm = recorder(
        "xpu_rms_norm", XPU_RMS_NORM, lambda x, weight, epsilon: rms_norm(x, weight, epsilon)
    )
    monkeypatch.setitem(sys.modules, "paddle_xpu_nn", vendor)
    return names


def accepted_cases(kernel, spec):
    """The cases that the kernel takes in one of its dtypes, sizes that only the card restricts left aside."""
    for case in spec.cases:
        made = parity.arguments_of(spec, case, "float32")
        bound, framework = arguments.bind(spec, (), made)
        call = describe(spec, bound, framework, training=False)
        rules = select.conditions(kernel, spec.name)[1:]  # the first asks for a dtype
        if not case.llama and all(rule.judge(call) for rule in rules if "head_dim must" not in str(rule)):
            yield case, made


@pytest.mark.parametrize("name, op", CALLS, ids=["-".join(call) for call in CALLS])
def test_calls_fit_the_signature_and_give_the_ops_result(name, op, called):
    kernel, spec = BACKENDS[name].kernels[op], getattr(fk, op).spec
    function, framework = kernel_function.resolve(kernel.functions["paddle"]), frameworks.load("paddle")
    checked = 0
    for case, made in accepted_cases(kernel, spec):
        got = framework.carried(function, "cpu")(**made)
        compared = comparison.compare_outputs(spec, made, got, {}, "float32")
        if np.size(comparison.listed(got)[0]):
            grads = comparison.grad_outputs(spec, got)
            gradients = framework.vjp(function, spec, grads, "cpu", made)
            compared += comparison.compare_gradients(spec, made, grads, gradients, "float32")
        # Paddle's float32 mean on the CPU is 12 to 24 epsilons off: what computes here is not what is under test.
        wrong = [f"{c.result} is {c.share:.3g} times its bound" for c in compared if not c.share <= 10]
        assert not wrong, (case.name, wrong)
        checked += 1
    assert checked >= 4 and called == CALLS[name, op]

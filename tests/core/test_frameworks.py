"""Kernels of one framework beside another's, and what is answered for PyTorch's tensors."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
import torch

import fusionkit as fk
from fusionkit import frameworks, registry
from fusionkit.backend import Kernel
from fusionkit.capability import MultipleOf
from fusionkit.errors import PluginError
from fusionkit.frameworks.numpy import DTYPES
from tests.core import toy

framework = frameworks.load("torch")


def two_kernels(**of_torch):
    """Paddle's and NumPy's tensors need a multiple of 48 columns, PyTorch's do not."""
    torch_kernel = Kernel({"torch": toy.REFERENCE}, **of_torch)
    return toy.backend("a_toy", ("cpu",), when=(MultipleOf("hidden_size", 48),), for_framework={"torch": torch_kernel})


@pytest.fixture
def op():
    return fk.Op("fusion_rms_norm")


def test_each_framework_has_the_conditions_of_its_own_kernel(prefer, op):
    prefer(two_kernels())
    assert op(torch.ones(2, 64), torch.ones(64)) == "toy ran"
    assert op.explain(paddle.ones([2, 64]), paddle.ones([64])).chosen == "cpu"
    assert op(paddle.ones([2, 48]), paddle.ones([48])) == "toy ran"


def test_one_frameworks_kernel_may_be_missing_alone(prefer, op):
    prefer(two_kernels(available=lambda: "no such driver"))
    explanation = op.explain(torch.ones(2, 48), torch.ones(48))
    assert "not available: no such driver" in str(explanation)
    assert op.explain(paddle.ones([2, 48]), paddle.ones([48])).chosen == "a_toy"


def test_a_kernel_for_a_framework_that_does_not_exist_is_refused():
    backend = toy.backend(for_framework={"jux": Kernel({"torch": toy.REFERENCE})})
    with pytest.raises(PluginError, match="no framework is called 'jux'"):
        registry.check("toy", backend)


def test_a_kernel_of_another_framework_is_not_passed_over(prefer, op):
    """Paddle's tensors go to cpu, which is then no fallback: strict settings let it be."""
    kernels = {"fusion_rms_norm": Kernel({"torch": toy.REFERENCE})}
    prefer(fk.Backend(name="a_toy", device_types=("cpu",), kernels=kernels))
    op(paddle.ones([2, 64]), paddle.ones([64]))
    (reason,) = [reason for (_, backend, reason), count in fk.ledger().items() if backend == "cpu" and count]
    assert reason == "not offered: a_toy: takes torch tensors, got paddle"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int64", "bool"])
def test_arrays_go_to_pytorch_and_back_bit_by_bit(dtype):
    array = np.arange(12).reshape(3, 4).astype(DTYPES[dtype])[:, ::2]
    tensor = framework.from_numpy(array, "cpu")
    assert framework.describe(tensor).dtype == dtype
    assert np.array_equal(framework.to_numpy(tensor), array) and framework.to_numpy(tensor).dtype == array.dtype


def test_autocast_casts_by_the_ops_class():
    x, weight = torch.ones(2, 4), torch.ones(4, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        state = framework.autocast()
        low = framework.cast_for(state, fk.fused_linear.spec, {"x": x, "weight": weight})
        kept = framework.cast_for(state, fk.swiglu.spec, {"gate": x, "up": x})
        with framework.without_autocast():
            assert framework.autocast() is None
    assert framework.autocast() is None
    assert low["x"].dtype == torch.bfloat16 and low["weight"] is weight, "a float32 weight is a master weight"
    assert kept["gate"] is x

"""What the gpu backend declares for PyTorch's tensors: both sides of every limit, and what explain says on no card."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import fusionkit as fk
from fusionkit import arguments, registry, select
from fusionkit.call import describe
from tests.boundaries import edges

GPU = next(backend for backend in registry.loaded() if backend.name == "gpu")
SERVING = {op: kernel.serving("torch") for op, kernel in GPU.kernels.items()}
TORCH = dataclasses.replace(GPU, kernels={op: k for op, k in SERVING.items() if "torch" in k.functions}, gaps={})


def call_of(edge):
    """The edge's TensorSpecs as if they were PyTorch's tensors."""
    spec = fk.Op(edge.op).spec
    call = describe(spec, *arguments.bind(spec, (), edge.arguments), training=edge.training)
    call.framework = "torch"
    return call


@pytest.mark.parametrize("edge", edges(TORCH), ids=str)
def test_a_limit_is_told_apart_from_one_step_beyond_it(edge):
    """Here the op has to take what is declared. The numbers are stated in tests/backends/test_stated_limits.py."""
    try:
        call = call_of(edge)
    except ValueError:
        assert not edge.accepted, "the op itself refuses what the backend would take"
        return
    assert bool(select.judge_kernel(TORCH.kernels[edge.op], call)) == edge.accepted


def test_explain_answers_for_a_card_that_is_not_here():
    x, weight = torch.ones(2, 33), torch.ones(33)
    explanation = fk.fusion_rms_norm.explain(x, weight, device="cuda:0", training=True)
    assert explanation.chosen == "gpu"
    reasons = {name: reasons for name, _, reasons in explanation.candidates}
    assert "not run" in reasons["gpu"]
    assert any("PyTorch" in reason and reason.startswith("not on this machine") for reason in reasons["gpu"])


def test_a_kernel_is_not_launched_from_a_traced_graph():
    spec = fk.fusion_add_rms_norm.spec
    x, weight = fk.TensorSpec((2, 8), "float32", "gpu:0"), fk.TensorSpec((8,), "float32", "gpu:0")
    call = describe(spec, *arguments.bind(spec, (x, x, weight), {}))
    assert select.judge_kernel(GPU.kernels["fusion_add_rms_norm"], call)
    call.traced = True
    verdict = select.judge_kernel(GPU.kernels["fusion_add_rms_norm"], call)
    assert verdict.reasons == ("the Triton kernel is launched, and a graph is traced",)


def test_explain_says_whose_product_it_is():
    explanation = fk.fused_linear.explain(torch.ones(2, 8), torch.ones(8, 4), device="cuda:0")
    assert "the product is cuBLAS's" in str(explanation)


def test_pytorch_tensors_in_host_memory_have_no_backend():
    with pytest.raises(fk.NoBackendError, match="gpu: tensors are on cpu"):
        fk.swiglu(torch.ones(2, 8), torch.ones(2, 8))


def test_an_op_for_pytorch_alone_says_so_to_paddles_tensors():
    paddle = pytest.importorskip("paddle")
    explanation = fk.fused_linear_cross_entropy.explain(
        paddle.ones([2, 8]), paddle.ones([8, 5]), paddle.zeros([2], "int64"), device="gpu:0"
    )
    reasons = {name: reasons for name, _, reasons in explanation.candidates}
    assert reasons["gpu"] == ("takes torch tensors, got paddle",) and explanation.chosen == "eager"

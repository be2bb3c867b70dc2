"""A toy device's backend, written with the kit alone, is right for every case of the ops that it serves."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import paddle
import pytest

import fusionkit as fk
from fusionkit import Kernel, parity
from fusionkit.adapters import gradients, nothing, products
from fusionkit.adapters.conditions import MASTER_WEIGHT
from fusionkit.capability import OneOf, Present, When
from tests.core.conftest import install  # noqa: F401

ROOT = Path(__file__).parents[2]
BOOL_MASK = When(Present("attn_mask"), OneOf("attn_mask.dtype", ("bool",)))


def kernel(op, **declared):
    return Kernel({"paddle": f"tests.adapters.toy_kernels:{op}"}, **declared)


TOY = fk.Backend(
    "toy",
    ("cpu",),
    {
        "flash_attention": kernel("flash_attention", dtypes=("float32",), when=(BOOL_MASK,)),
        "fusion_rms_norm": kernel("fusion_rms_norm", notes=((MASTER_WEIGHT, "computed in float32"),)),
        "fusion_rope": kernel("fusion_rope", when=(OneOf("interleaved", (False,)),)),
    },
)
ADDED = fk.Backend("added", ("cpu",), {"flash_attention": kernel("flash_attention_added", dtypes=("float32",))})


def accepted(backend, route):
    for name, offered in backend.kernels.items():
        op = getattr(fk, name)
        for case in (case for case in op.spec.cases if not case.llama):
            for dtype in offered.dtypes:
                if parity.judged(op, case, dtype, backend.name, route):
                    yield op, case, dtype


@pytest.mark.parametrize("backend", [TOY, ADDED], ids=lambda backend: backend.name)
@pytest.mark.parametrize("route, every", [("paddle", 1), ("static", 8)])  # tracing takes ten times as long
def test_a_backend_of_the_kit_is_right_for_the_cases_that_it_takes(backend, route, every, install, parity_of):  # noqa: F811
    install(backend)
    checks = list(accepted(backend, route))[::every]
    for op, case, dtype in checks:
        parity.check(op, case, dtype, backend.name, route)
        parity_of(backend.name, route)
    assert {op.__name__ for op, *_ in checks} == set(backend.kernels) and len(checks) >= 50 // every


def inputs(*shapes, dtype="float32"):
    paddle.seed(0)
    tensors = [paddle.randn(shape).astype(dtype) for shape in shapes]
    for tensor in tensors:
        tensor.stop_gradient = False
    return tensors


def test_a_linear_map_gets_the_gradient_that_is_named():
    (x,) = inputs([3])
    y = gradients.linear_map(x, lambda x, factor: x * factor, lambda dy, factor: dy * factor + 1, 5)
    (y * paddle.to_tensor([1.0, 2.0, 3.0])).sum().backward()
    np.testing.assert_array_equal(y.numpy(), 5 * x.numpy())
    np.testing.assert_array_equal(x.grad.numpy(), [6, 11, 16])


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_a_product_asks_for_the_gradients_that_are_wanted(wanted):
    x, weight = inputs([2, 3], [3, 4])
    x.stop_gradient, weight.stop_gradient = (not each for each in wanted)
    asked = []

    def backward(dy, x, weight, *wants):
        asked.append(wants)
        return dy @ weight.t() if wants[0] else None, x.t() @ dy if wants[1] else None

    gradients.product(x, weight, lambda x, weight: x @ weight, backward).sum().backward()
    assert asked == [wanted] and [tensor.grad is not None for tensor in (x, weight)] == list(wanted)
    if wanted[1]:
        np.testing.assert_allclose(weight.grad.numpy(), np.repeat(x.numpy().sum(0)[:, None], 4, 1), rtol=1e-6)


def test_the_gradient_of_a_weight_has_the_weights_dtype():
    dy, x = (tensor.astype("bfloat16") for tensor in inputs([2, 5, 4], [2, 5, 3]))
    exact = np.einsum("bsk,bsn->kn", *(tensor.astype("float64").numpy() for tensor in (x, dy)))
    got = products.weight_gradient(x, dy, paddle.float32)
    assert got.dtype == paddle.float32
    np.testing.assert_allclose(got.numpy(), exact, rtol=1e-5, atol=1e-6)
    (weight,) = inputs([3], dtype="bfloat16")
    weight.retain_grads()
    (products.with_own_gradient(weight).astype("float32") * 3).sum().backward()
    assert weight.grad.dtype == paddle.bfloat16


@pytest.mark.parametrize(
    "call, shapes, result",
    [
        (nothing.norm, ([0, 3], [3]), [0, 3]),
        (nothing.attention, ([2, 4, 2, 8], [2, 0, 1, 8], [2, 0, 1, 8]), [2, 4, 2, 8]),
        (nothing.attention, ([2, 0, 2, 8], [2, 3, 1, 8], [2, 3, 1, 8]), [2, 0, 2, 8]),
        (nothing.product, ([0, 3], [3, 4]), [0, 4]),
    ],
)
def test_every_input_of_a_call_without_elements_has_a_gradient_of_zeros(call, shapes, result):
    tensors = inputs(*shapes)
    assert nothing.is_empty(*tensors)
    y = call(*tensors)
    assert y.shape == result and not y.numpy().any()
    y.sum().backward()
    for tensor, shape in zip(tensors, shapes, strict=True):
        assert tensor.grad is not None and tensor.grad.shape == shape and not tensor.grad.numpy().any()


def imported(folder):
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            yield from ((path.relative_to(ROOT), name) for name in names if name)


def test_backends_import_nothing_of_eager():
    wrong = [(str(path), name) for path, name in imported("backends") if name.startswith("fusionkit.eager")]
    assert not wrong


def test_the_emulator_states_contracts_without_the_kit():
    """It is an independent witness of what the kit does, and so are the programs that hold it to its contract."""
    wrong = [(str(p), n) for p, n in imported("emulator") if n.startswith(("fusionkit.adapters", "fusionkit_backends"))]
    assert not wrong

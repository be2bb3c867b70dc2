"""The calls at the edges of what the emulated device's backend declares. Run by test_boundaries.py on that device.

Accepted: it runs there, by the ledger, and agrees with float64, gradients included. Refused: the same call, forced past
the declaration, is refused by the vendor's op; or the op has no argument to say it with, and the result is another one.
"""

from __future__ import annotations

import importlib
import zlib

import numpy as np
import paddle
import pytest

import fusionkit as fk
from fusionkit import comparison, frameworks, kernel_function, registry
from fusionkit.capability import ForwardOnly, LeftOut
from fusionkit.frameworks import custom_device
from fusionkit.frameworks.numpy import DTYPES
from fusionkit.spec import TensorSpec
from tests.boundaries import edges

DEVICE = paddle.device.get_all_custom_device_type()[0]
BACKEND = next(backend for backend in registry.loaded() if backend.name == DEVICE)
# Those of a collective op take the processes of matmul_collective_kernels.py.
EDGES = [edge for edge in edges(BACKEND) if not fk.Op(edge.op).spec.collective]
PADDLE = frameworks.load("paddle")
# Arguments of our ops that the vendors' ops do not have.
NOT_SAYABLE = ("scale",)


def add_rms_norm(x, residual, weight):
    """The kernel casts to residual's dtype; what the declaration refuses is to let it."""
    return custom_device.run("fused_add_rms_norm_op", (x.clone(), residual.clone(), weight), 1e-5)


def attention(**arguments):
    """A mask goes straight to the vendor's op; the kernel takes the rest."""
    module = importlib.import_module(f"fusionkit_backends.{DEVICE}.flash_attention")
    if "attn_mask" not in arguments:
        return module.flash_attention(**arguments)
    q, k, v, mask = (arguments[name] for name in ("q", "k", "v", "attn_mask"))
    return module._attend(q, k, v, mask, False)


FORCED = {"fusion_add_rms_norm": add_rms_norm, "flash_attention": attention}


def values(name, spec, rng, arguments):
    if spec.dtype == "bool":
        made = rng.random(spec.shape) < 0.7
    elif name == "startend_row_indices":
        made = np.full(spec.shape, arguments["k"].shape[1])
        made[..., :2, 0] = 3  # keys 0 and 1 are hidden from row 3 on
        return made.astype(np.int32)
    elif np.issubdtype(DTYPES[spec.dtype], np.integer):
        made = rng.integers(0, 5, spec.shape)
    else:
        made = rng.standard_normal(spec.shape)
    return made.astype(DTYPES[spec.dtype])


def arrays(edge):
    rng = np.random.default_rng(zlib.crc32(str(edge).encode()))
    return {
        name: values(name, value, rng, edge.arguments) if isinstance(value, TensorSpec) else value
        for name, value in edge.arguments.items()
    }


def compared(edge, function, check_gradients):
    """The worst error of a call as a share of its bound; infinity for another number of results."""
    spec, made = fk.Op(edge.op).spec, arrays(edge)
    dtype = made[spec.inputs[0].name].dtype.name
    got = PADDLE.carried(function, f"{DEVICE}:0")(**made)
    wanted = len(
        comparison.listed(spec.reference(**{k: np.asarray(v) if k != "causal" else v for k, v in made.items()}))
    )
    if wanted != len(comparison.listed(got)):
        return np.inf
    shares = comparison.compare_outputs(spec, made, got, {}, dtype)
    if check_gradients:
        grads = comparison.grad_outputs(spec, got)
        shares += comparison.compare_gradients(
            spec, made, grads, PADDLE.vjp(function, spec, grads, f"{DEVICE}:0", made), dtype
        )
    return max(each.share for each in shares)


def accepted(edge):
    op, kernel = fk.Op(edge.op), BACKEND.kernels[edge.op]
    before = fk.ledger().get((edge.op, DEVICE, "chosen"), 0)
    with fk.use_backend(DEVICE):
        share = compared(edge, op, "backward" in kernel.directions)
    ran = fk.ledger().get((edge.op, DEVICE, "chosen"), 0) - before
    assert ran == (2 if "backward" in kernel.directions else 1) and share <= 1


def refused(edge):
    kernel = kernel_function.resolve(BACKEND.kernels[edge.op].functions["paddle"])
    function = FORCED.get(edge.op, kernel)
    if isinstance(edge.predicate, ForwardOnly):
        tensors = {name: PADDLE.over_tensors(value, f"{DEVICE}:0") for name, value in arrays(edge).items()}
        first = next(iter(tensors.values()))
        first.stop_gradient = False
        outputs = function(**tensors)
        assert all(output.stop_gradient for output in comparison.listed(outputs)), "the device has a gradient after all"
    elif isinstance(edge.predicate, LeftOut):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{edge.predicate.argument}'"):
            PADDLE.carried(kernel, f"{DEVICE}:0")(**arrays(edge))
    elif any(name in edge.arguments for name in NOT_SAYABLE):
        assert compared(edge, function, False) > 1
    else:
        with pytest.raises(ValueError, match=rf"must be .*, got .*\(emulated {DEVICE}\)"):
            PADDLE.carried(function, f"{DEVICE}:0")(**arrays(edge))


@pytest.mark.parametrize("edge", EDGES, ids=str)
def test_edge(edge):
    try:
        fk.Op(edge.op).explain(**edge.arguments, training=edge.training)
    except ValueError:
        assert not edge.accepted, "the op itself refuses what the backend would take"
        return
    accepted(edge) if edge.accepted else refused(edge)


def test_there_are_calls_on_both_sides():
    assert {edge.accepted for edge in EDGES} == {True, False} and len(EDGES) >= 20

"""What the interpreting process checks beyond parity cases; see test_interpreted_checks.py."""

from __future__ import annotations

import contextlib
import importlib
import math
import pkgutil
import re

import numpy as np
import torch
from fusionkit_backends.gpu import kernels
from fusionkit_backends.gpu.autograd import fused_linear_cross_entropy as chunked
from fusionkit_backends.gpu.autograd import values
from fusionkit_backends.gpu.kernels import cross_entropy, launch, rms_norm_gradient, rope

import fusionkit as fk
from fusionkit import parity
from fusionkit.comparison import ParityError
from fusionkit.frameworks.torch import from_numpy
from fusionkit.spec import Case
from tests import extreme_values


def of_case(op, name, dtype="float32"):
    case = next(case for case in op.spec.cases if case.name == name)
    return case, {
        n: from_numpy(v, "cpu") if isinstance(v, np.ndarray) else v
        for n, v in parity.arguments_of(op.spec, case, dtype).items()
    }


def strided(tensor, where):
    """The same values at other strides: every second element of each axis, or the axes' memory in reverse order."""
    if where == "spread":
        wide = torch.full([2 * size for size in tensor.shape], float("nan"), dtype=torch.float64).to(tensor.dtype)
        view = wide[tuple(slice(None, None, 2) for _ in tensor.shape)]
    else:
        view = torch.empty(tuple(reversed(tensor.shape)), dtype=tensor.dtype).permute(*reversed(range(tensor.ndim)))
    return view.copy_(tensor)


def results(op, arguments, grad_layout=None):
    """Outputs and gradients."""
    leaves = {
        n: v.detach().requires_grad_()
        for n, v in arguments.items()
        if isinstance(v, torch.Tensor) and op.spec.input(n).differentiable
    }
    outputs = op(**{**arguments, **leaves})
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    through = [output for output in outputs if output.requires_grad]
    rng = np.random.default_rng(5)
    grads = [from_numpy(rng.standard_normal(tuple(o.shape)), "cpu").to(o.dtype) for o in through]
    if grad_layout:
        grads = [strided(grad, grad_layout) if grad.ndim else grad for grad in grads]
    return [*outputs, *torch.autograd.grad(through, list(leaves.values()), grads)]


def strides_do_not_matter(op, case, where):
    """Bit for bit what contiguous tensors give, for inputs and for the gradients that come in."""
    op = getattr(fk, op)
    _, arguments = of_case(op, case)
    spread = {n: strided(v, where) if isinstance(v, torch.Tensor) and v.ndim else v for n, v in arguments.items()}
    with fk.use_backend("gpu"):
        for want, got in zip(results(op, arguments), results(op, spread, where), strict=True):
            assert torch.equal(want, got)
    assert fk.ledger()[op.__name__, "gpu", "chosen"] >= 2


def halves_of_one_tensor():
    """gate and up as a fused projection leaves them."""
    both = torch.randn(5, 2 * 33)
    gate, up = both.chunk(2, dim=-1)
    with fk.use_backend("gpu"):
        assert torch.equal(fk.swiglu(gate, up), fk.swiglu(gate.contiguous(), up.contiguous()))


def long_rows(op, columns):
    """Rows that no program holds, in forward or backward."""
    op = getattr(fk, op)

    def arguments(rng):
        made = {"x": rng.standard_normal((5, columns)), "weight": 1 + 0.1 * rng.standard_normal(columns)}
        return made | ({"residual": rng.standard_normal((5, columns))} if op.__name__ == "fusion_add_rms_norm" else {})

    parity.check(op, Case(f"T5xH{columns}", arguments), "bfloat16", "gpu", "torch")


def loss_by_chunks(dtype, keep_float32):
    """The parity cases whose tokens fill a chunk, with chunks of two tokens."""
    before = chunked.chunk_rows
    chunked.chunk_rows = lambda *sizes: 2
    try:
        for case in fk.fused_linear_cross_entropy.spec.cases:
            if not case.llama and bool(case.keep_float32) == keep_float32:
                parity.check(fk.fused_linear_cross_entropy, case, dtype, "gpu", "torch")
    finally:
        chunked.chunk_rows = before


def gradients_twice():
    """A retained graph gives the same gradients again; in bfloat16 with float32 weights and several chunks too."""
    _, arguments = of_case(fk.fused_linear_cross_entropy, "T7xH17xV17")
    x, weight = (arguments[name].requires_grad_() for name in ("x", "weight"))
    with fk.use_backend("gpu"):
        loss, _ = fk.fused_linear_cross_entropy(x, weight, arguments["labels"])
    first = torch.autograd.grad(loss * 3, (x, weight), retain_graph=True)
    second = torch.autograd.grad(loss * 3, (x, weight))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def one_output_alone():
    """A loss that reaches only y, or only the sum."""
    _, arguments = of_case(fk.fusion_add_rms_norm, "T3xH33")
    x, residual = (arguments[name].requires_grad_() for name in ("x", "residual"))
    with fk.use_backend("gpu"):
        y, total = fk.fusion_add_rms_norm(x, residual, arguments["weight"])
        dy, dtotal = torch.randn_like(y), torch.randn_like(total)
        both = torch.autograd.grad((y, total), x, (dy, dtotal), retain_graph=True)[0]
        alone = torch.autograd.grad(y, x, dy, retain_graph=True)[0]
        through_sum = torch.autograd.grad(total, x, dtotal)[0]
    assert torch.equal(through_sum, dtotal)
    assert torch.allclose(alone + dtotal, both, atol=1e-6)


def wrong_values_are_not_read():
    """On a card nobody looks at the values: a position without a row, or a label without a logit, gives NaN."""
    values.require_values, real = lambda *_: None, values.require_values
    try:
        q = torch.randn(1, 3, 2, 8)
        table = torch.ones(4, 4)
        new_q, new_k = torch.empty_like(q), torch.empty_like(q)
        rope.rotate(q, q, table, table, torch.tensor([[0, 4, -1]]), False, new_q, new_k, 1)
        assert new_q.isnan().flatten(2).all(-1).tolist() == [[False, True, True]]
        assert not new_q[0, 0].isnan().any()
        losses, gradient, sums = torch.empty(4), torch.empty(4, 5), torch.empty(4)
        cross_entropy.cross_entropy(torch.randn(4, 5), torch.tensor([4, 5, -1, -100]), -100, losses, gradient, sums)
        assert losses.isnan().tolist() == [False, True, True, False]
        assert gradient.isnan().all(-1).tolist() == [False, True, True, False]
        assert not gradient[0].isnan().any() and not gradient[3].any()
    finally:
        values.require_values = real


def heads_far_apart():
    """The third head lies 2^31 elements behind the first: strides times heads must not wrap around. Of the buffer's
    4 GiB the pages of a few kilobytes are touched."""
    buffer = torch.empty(2**31 + 2**16, dtype=torch.float16)

    def far(*sizes, at=0):
        batch_size, length, heads, width = sizes
        return buffer.as_strided(sizes, (length * width, width, 2**30, 1), at).copy_(torch.randn(sizes))

    q, k, v = (far(1, 5, 3, 16, at=4096 * i) for i in range(3))
    mask = far(1, 5, 3, 5, at=4096 * 3).transpose(1, 2)
    table = torch.rand(5, 8)
    with fk.use_backend("gpu"):
        for op, arguments in (
            ("flash_attention", {"q": q, "k": k, "v": v, "attn_mask": mask}),
            ("fusion_rope", {"q": q, "k": k, "cos": table, "sin": table}),
        ):
            near = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in arguments.items()}
            for want, got in zip(results(getattr(fk, op), near), results(getattr(fk, op), arguments), strict=True):
                assert torch.equal(want, got), op


def rows_without_columns():
    """Sums of nothing: the bias, zeros, and the logarithm of the vocabulary's size."""
    x, weight = torch.empty(3, 0, requires_grad=True), torch.empty(0, 5, requires_grad=True)
    bias = torch.arange(5.0)
    with fk.use_backend("gpu"):
        assert torch.equal(fk.fused_linear(x, weight, bias), bias.expand(3, 5))
        assert torch.equal(fk.fused_linear(x, weight), torch.zeros(3, 5))
        loss, num_tokens = fk.fused_linear_cross_entropy(x, weight, torch.tensor([0, 1, 4]))
        assert num_tokens == 3 and abs(float(loss) - 3 * math.log(5)) < 1e-6
        made = [loss, fk.fused_linear(x, weight).sum(), fk.swiglu(x, x).sum()]
        scale = torch.empty(0, requires_grad=True)
        made += [fk.fusion_rms_norm(x, scale).sum(), fk.fusion_add_rms_norm(x, x, scale)[1].sum()]
        assert [x.shape == grad.shape for grad in (torch.autograd.grad(each, x)[0] for each in made)] == [True] * 5


def refused(op, case):
    """The spec's error, on a first call and on one that takes a remembered decision."""
    op = fk.Op(op)
    invalid = next(each for each in op.spec.invalid_cases if each.name == case)
    made = parity.arguments_of(op.spec, Case(invalid.name, invalid.arguments), "float32")
    arguments = {n: from_numpy(v, "cpu") if isinstance(v, np.ndarray) else v for n, v in made.items()}
    valid = {n: v for n, v in of_case(op, op.spec.cases[0].name)[1].items() if n in made}
    with fk.use_backend("gpu"):
        for _ in range(2):
            try:
                op(**arguments)
            except invalid.error as error:
                assert str(error).startswith(f"{op.__name__}: ") and re.search(invalid.match, str(error)), error
            else:
                raise AssertionError("nothing was refused")
            with contextlib.suppress(ValueError):  # without its scalars the case may be invalid
                op(**valid)


def repeats_bit_by_bit():
    """The weight's gradient is a sum over programs; the order of its parts is fixed."""
    x, weight, dy = torch.randn(23, 33), torch.randn(33), torch.randn(23, 33)
    assert rms_norm_gradient.num_parts(23, 33) >= 1
    seen = set()
    for _ in range(3):
        leaf = weight.clone().requires_grad_()
        with fk.use_backend("gpu"):
            fk.fusion_rms_norm(x, leaf).backward(dy)
        seen.add(leaf.grad.numpy().tobytes())
    assert len(seen) == 1


def tensors_of(arguments):
    """Those in bundles too."""
    for each in arguments:
        if isinstance(each, torch.Tensor):
            yield each
        elif isinstance(each, tuple):
            yield from tensors_of(each)


def mistake_fails_parity(op, case, mistake):
    """Kernels that leave zeros, or that are off by two percent, are found out."""

    real = launch.launch

    def planted(kernel, grid, *arguments, **constants):
        tensors = list(tensors_of(arguments))
        before = [tensor.clone() for tensor in tensors]
        real(kernel, grid, *arguments, **constants)
        for tensor, old in zip(tensors, before, strict=True):
            if not torch.equal(tensor, old):
                tensor.mul_(0 if mistake == "zeros" else 1.02)

    names = [f"{kernels.__name__}.{module.name}" for module in pkgutil.iter_modules(kernels.__path__)]
    users = [module for name in names if hasattr(module := importlib.import_module(name), "launch")]
    assert users
    try:
        for module in users:
            module.launch = planted
        parity.check(getattr(fk, op), of_case(getattr(fk, op), case)[0], "bfloat16", "gpu", "torch")
    except ParityError as error:
        assert "times its bound" in str(error)
    else:
        raise AssertionError("the mistake was not found")
    finally:
        for module in users:
            module.launch = real


def extreme_value(op, name, dtype):
    """A result that float32 holds though a step on the way to it does not fit."""
    extreme_values.check(op, name, dtype, "gpu", "torch")

"""Every op's cases on the gpu backend's Triton kernels, in Triton's interpreter on the CPU, with gradients."""

from __future__ import annotations

import numpy as np
import pytest

import fusionkit as fk
from fusionkit import kernel_function, parity, registry

GPU = next(backend for backend in registry.loaded() if backend.name == "gpu")
TORCH = {op: kernel.serving("torch") for op, kernel in GPU.kernels.items()}
KERNELS = {op: kernel for op, kernel in TORCH.items() if "torch" in kernel.functions}


def runs(op, case, dtype):
    """Llama's sizes, each of which takes up to a minute, in the dtype that they are used in; all others in each."""
    return parity.applies(getattr(fk, op).spec, case, "torch") and (not case.llama or dtype == "bfloat16")


def is_taken(op, kernel, case, dtype):
    """Whether the case leaves at their defaults the arguments that the kernel leaves out."""
    spec, absent = getattr(fk, op).spec, kernel_function.left_out(kernel, op)
    made = parity.arguments_of(spec, case, dtype) if absent else {}
    defaults = {name: spec.parameters.parameters[name].default for name in absent}
    return all(np.array_equal(made.get(name, default), default) for name, default in defaults.items())


def in_sample(number, case, dtype):
    """float16's programs are bfloat16's but for the name of an instruction: every third case, and what is about it."""
    return dtype != "float16" or number % 3 == 0 or "float16" in case.name


def cases():
    for op, kernel in KERNELS.items():
        for dtype in kernel.dtypes:
            for number, case in enumerate(getattr(fk, op).spec.cases):
                if runs(op, case, dtype) and is_taken(op, kernel, case, dtype):
                    marks = () if in_sample(number, case, dtype) else pytest.mark.full
                    name = f"{op}-gpu-{dtype}-{case.name}-interpreted"
                    yield pytest.param(op, case.name, dtype, id=name, marks=marks)


@pytest.mark.parametrize("op, case, dtype", list(cases()))
def test_interpreted_kernel_agrees_with_float64(op, case, dtype, interpreter, parity_of):
    interpreter(op=op, case=case, dtype=dtype)
    parity_of("gpu", "torch, interpreted on the CPU: not run on hardware")


def cases_on_paddles_tensors():
    op = "fusion_add_rms_norm"  # the one op that Paddle's tensors take to a Triton kernel
    for dtype in GPU.kernels[op].dtypes:
        for case in getattr(fk, op).spec.cases:
            if not case.llama:
                yield pytest.param(op, case.name, dtype, id=f"{op}-gpu-{dtype}-{case.name}-paddle-interpreted")


@pytest.mark.parametrize("op, case, dtype", list(cases_on_paddles_tensors()))
def test_interpreted_kernel_on_paddles_tensors_agrees_with_float64(op, case, dtype, interpreter, parity_of):
    interpreter(op=op, case=case, dtype=dtype, route="paddle")
    parity_of("gpu", "paddle, interpreted on the CPU: not run on hardware")

"""The launches that a gpu op makes for a call, recorded on tensors without memory."""

from __future__ import annotations

import fusionkit_backends.gpu
import torch
from fusionkit_backends.gpu.kernels import card
from fusionkit_backends.gpu.kernels.launch import recording

from fusionkit import kernel_function

CARDS = {80: card.A100, 90: card.H100}
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}


def empty(*shape, dtype, grad=True):
    """A tensor of the device "meta"; its address counts as aligned, as those of PyTorch's allocator are."""
    dtype = DTYPES.get(dtype, dtype)
    return torch.empty(shape, dtype=dtype, device="meta", requires_grad=grad and dtype.is_floating_point)


def of_call(op, capability, arguments, training=True):
    """Forward, and with training the gradients of everything that takes one."""
    kernel = fusionkit_backends.gpu.backend.kernels[op].serving("torch")
    function = kernel_function.resolve(kernel.functions["torch"])
    with card.assumed(CARDS[capability]), recording() as launches:
        outputs = function(**arguments)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        if training:
            through = [output for output in outputs if output.requires_grad]
            torch.autograd.backward(through, [torch.empty_like(output) for output in through])
    return launches

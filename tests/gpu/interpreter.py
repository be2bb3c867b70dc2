"""Runs parity cases of the gpu backend in Triton's interpreter on the CPU: a process that takes requests by line.

    TRITON_INTERPRET=1 python -m tests.gpu.interpreter

reads {"op", "case", "dtype"} or {"call": "module:function", ...} and answers {"error": null or the text}. Triton
decides at its import whether functions are interpreted, so this cannot share a process with other tests.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib
import json
import os
import sys
import traceback
from contextlib import contextmanager

# Of Llama's 1024 tokens and 40 heads, each of which is a program: still several blocks of each kind, and an odd count.
TOKENS = {"fusion_rope": 8, "flash_attention": 136}
HEADS = {
    "flash_attention": ({"q": 2, "k": 2, "v": 2}, 3),
    "paged_attention": ({"q": 1, "k": 1, "v": 1, "key_cache": 1, "value_cache": 1}, 3),
}


@contextmanager
def gpu_on_the_cpu():
    """The gpu backend as it is declared, but that it owns the CPU's tensors and lacks nothing that it needs."""
    from fusionkit import registry

    def there(kernel):
        frameworks = {name: there(each) for name, each in kernel.for_framework.items()}
        return dataclasses.replace(kernel, available=lambda: None, for_framework=frameworks)

    plugins = registry.plugins()
    gpu = next(plugin for plugin in plugins if plugin.name == "gpu")
    kernels = {op: there(kernel) for op, kernel in gpu.backend.kernels.items()}
    backend = dataclasses.replace(
        gpu.backend, kernels=kernels, available=lambda: None, device_types=("cpu", *gpu.backend.device_types)
    )
    patched = tuple(dataclasses.replace(p, backend=backend) if p is gpu else p for p in plugins)
    real, registry.plugins = registry.plugins, lambda: patched
    try:
        yield backend
    finally:
        registry.plugins = real


def collect_garbage_rarely():
    """The interpreter makes a million short-lived objects a second; what is loaded stays."""
    gc.freeze()
    gc.set_threshold(100_000)


def leave_arguments_in_place():
    """They are in host memory already; the interpreter's copies are for a card, and know PyTorch's tensors alone."""
    from triton.runtime.interpreter import GridExecutor

    GridExecutor._init_args_hst = lambda self, arguments, constants: (arguments, constants)
    GridExecutor._restore_args_dev = lambda *arguments: None


def interpret_without_waste():
    """Triton 3.7.1's interpreter patches the whole language again at every call of a device function, and computes a
    check for overflow of which only a debug build makes use: two thirds of a kernel's time."""
    from triton.runtime import interpreter

    patch, patched = interpreter._patch_lang, {}

    def patch_once(function):
        module = function.__globals__
        if id(module) not in patched:
            patched[id(module)] = module
            patch(function)
        return interpreter._LangPatchScope()  # which restores nothing

    interpreter._patch_lang = patch_once
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)


def make_types_once():
    """Triton 3.7.1's interpreter makes the type of a block, and a table of NumPy's dtypes, anew for every operation,
    and the shape of every result: a third of a kernel's time. Types have no hash; their names tell them apart."""
    from triton.language import core
    from triton.runtime import interpreter

    initialize, dtype_of, blocks, dtypes = core.block_type.__init__, interpreter._get_np_dtype, {}, {}
    initialize_tensor, shapes = core.tensor.__init__, {}

    def block_type(cls, element, shape):
        key = element.name, *map(core._unwrap_if_constexpr, shape)
        if key not in blocks:
            blocks[key] = object.__new__(cls)
            initialize(blocks[key], element, shape)
        return blocks[key]

    def dtype_once(of):
        name = of.scalar.name
        if name not in dtypes:
            dtypes[name] = dtype_of(of)
        return dtypes[name]

    def tensor(self, handle, of):
        if of.name not in shapes:
            initialize_tensor(self, handle, of)
            shapes[of.name] = self.shape, self.numel
        self.handle, self.type, self.dtype = handle, of, of.scalar
        self.shape, self.numel = shapes[of.name]

    core.tensor.__init__ = tensor
    core.block_type.__new__, core.block_type.__init__ = block_type, lambda *_: None
    interpreter._get_np_dtype = dtype_once


def compute_bfloat16_as_a_card():
    """Triton 3.7.1's interpreter cuts off the lower bits of a float32 that becomes bfloat16, where a card rounds to the
    nearest, and multiplies the bits of bfloat16 matrices as if they were integers."""
    import ml_dtypes
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    cut_off = interpreter._convert_float

    def convert(values, source, target, rounding_mode):
        if (source, target) == (tl.float32, tl.bfloat16):
            with np.errstate(invalid="ignore", over="ignore"):
                return values.view(np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)
        if (source, target) == (tl.bfloat16, tl.float32):
            return values.view(np.uint16).astype(np.uint32) << 16
        return cut_off(values, source, target, rounding_mode)

    def create_dot(builder, a, b, d, *precision):
        wide = [_as_float32(each, tl, np) for each in (a, b)]
        return dot(builder, *wide, d, *precision)

    dot, interpreter._convert_float = interpreter.InterpreterBuilder.create_dot, convert
    interpreter.InterpreterBuilder.create_dot = create_dot


def _as_float32(handle, tl, np):
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return type(handle)((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def check(op, case, dtype, route="torch"):
    """One parity case; the ledger must say that gpu ran."""
    import fusionkit as fk
    from fusionkit import parity

    made = getattr(fk, op)
    found = next(each for each in made.spec.cases if each.name == case)
    parity.check(made, shortened(op, found) if found.llama else found, dtype, "gpu", route)


def shortened(op, case):
    """Llama's size with its first tokens and heads."""

    def arguments(rng):
        made = case.arguments(rng)
        if op in TOKENS:
            made |= {name: made[name][:, : TOKENS[op]] for name in ("q", "k", "v") if name in made}
        axes, heads = HEADS.get(op, ({}, 0))
        return made | {name: made[name].take(range(heads), axis) for name, axis in axes.items()}

    return dataclasses.replace(case, arguments=arguments)


def call(reference, **arguments):
    """A test's own function, in this process."""
    module, _, function = reference.partition(":")
    getattr(importlib.import_module(module), function)(**arguments)


def serve(answers):
    import torch
    from triton import knobs

    assert knobs.runtime.interpret, "TRITON_INTERPRET=1 must be set before Triton is imported"
    torch.set_num_threads(1)
    interpret_without_waste()
    make_types_once()
    collect_garbage_rarely()
    compute_bfloat16_as_a_card()
    leave_arguments_in_place()
    with gpu_on_the_cpu():
        for line in sys.stdin:
            request = json.loads(line)
            try:
                call(request.pop("call"), **request) if "call" in request else check(**request)
                error = None
            except Exception:
                error = traceback.format_exc()
            print(json.dumps({"error": error}), file=answers, flush=True)


if __name__ == "__main__":
    # Answers have a stream of their own: whatever a library prints goes to stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(answers)

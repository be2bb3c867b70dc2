"""The way of a call from `Op.__call__` to a kernel of the cpu backend: one path, which enters each file once."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from fusionkit_backends.cpu import fusion_rms_norm as kernel

import fusionkit as fk
from fusionkit import call as call_module
from fusionkit import frameworks, kernel_function
from fusionkit import op as op_module
from fusionkit import plan as plan_module

CORE = Path(op_module.__file__).parent
STEERING = {op_module.__file__, plan_module.__file__}  # what hands a call on, from file to file


def walk(op, *args):
    """The files that a call is handed to, in order, until the kernel returns."""
    entered = []

    def seen(frame, event, _):
        if event != "call" or frame.f_back is None:
            return
        here, there = frame.f_back.f_code.co_filename, frame.f_code.co_filename
        ours = there.startswith(str(CORE)) or there == kernel.__file__
        if here in STEERING and there != here and ours:
            entered.append(Path(there).stem)

    sys.setprofile(seen)
    try:
        op(*args)
    finally:
        sys.setprofile(None)
    # A framework's module answers a question about a tensor, and returns.
    return [name for name, _ in itertools.groupby(name for name in entered if name not in frameworks.NAMES)]


@pytest.fixture
def tensors():
    paddle = pytest.importorskip("paddle")
    return {
        "numpy": (np.ones((2, 8), np.float32), np.ones(8, np.float32)),
        "paddle": (paddle.ones([2, 8]), paddle.ones([8])),
    }


@pytest.mark.parametrize("framework", ["numpy", "paddle"])
def test_a_first_call_enters_each_file_once(tensors, framework):
    op = fk.Op("fusion_rms_norm")
    files = walk(op, *tensors[framework])
    assert files == ["arguments", "plan", "call", "select", "kernel_function", "ledger", "fusion_rms_norm"]


@pytest.mark.parametrize("framework", ["numpy", "paddle"])
def test_a_call_that_is_remembered_enters_the_plan_and_the_kernel(tensors, framework):
    op = fk.Op("fusion_rms_norm")
    op(*tensors[framework])
    assert walk(op, *tensors[framework]) == ["plan", "fusion_rms_norm"]


@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_a_first_call_is_described_once(tensors, backend, monkeypatch):
    """Later ones too where the kernel checks no sizes, and not at all where it does."""
    described = []

    def describe(*args, **kwargs):
        described.append(args)
        return call_module.describe(*args, **kwargs)

    for module in (plan_module, kernel_function):
        monkeypatch.setattr(module, "describe", describe)
    op = fk.Op("fusion_rms_norm")
    with fk.use_backend(backend):
        for count in (1, 2 if backend == "eager" else 1):
            op(*tensors["numpy"])
            assert len(described) == count

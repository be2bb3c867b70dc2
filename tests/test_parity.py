"""Every op x backend x dtype x case against float64: through NumPy, Paddle and a static graph, with gradients."""

from __future__ import annotations

import pytest

import fusionkit as fk
from fusionkit import parity, registry
from fusionkit.dtypes import FLOATING
from fusionkit.ops import OP_NAMES
from tests import product_rates, thread_counts


def checks():
    for backend in registry.loaded():
        if registry.unavailable(backend) is not None:
            continue
        for name in OP_NAMES:
            op = getattr(fk, name)
            for dtype in backend.kernels[name].dtypes if name in backend.kernels else ():
                for number, case in enumerate(op.spec.all_cases):
                    for route in parity.ROUTES:
                        if parity.applies(op.spec, case, route) and not (case.llama and route != "paddle"):
                            # What a device's backend refuses is not to be checked; cpu and eager take every case, but
                            # eager no quantized weight.
                            may_refuse = case.quantized or not backend.owns("cpu")
                            if may_refuse and not parity.judged(op, case, dtype, backend.name, route):
                                continue
                            label = f"{name}-{backend.name}-{dtype}-{case.name}-{route}"
                            marks = [pytest.mark.llama] if case.llama else []
                            marks += [] if in_sample(backend.name, dtype, number, case, route) else [pytest.mark.full]
                            yield pytest.param(op, backend.name, dtype, case, route, id=label, marks=marks)


def in_sample(backend, dtype, number, case, route):
    """Most of the time went to compositions: traced ones, which are the same program whatever the dtype, and those of
    Llama's sizes. `make test` takes each case of them in one dtype; they run in every dtype untraced and small."""
    if backend != "eager" or dtype not in FLOATING:
        return True
    if case.llama:
        return dtype == "bfloat16"
    return route != "static" or number % len(FLOATING) == FLOATING.index(dtype)


@pytest.fixture(scope="module", autouse=True)
def product_rates_measured_once():
    put_back = product_rates.measured_once()
    yield
    put_back()


@pytest.mark.parametrize("op, backend, dtype, case, route", list(checks()))
def test_kernel_agrees_with_float64(native, op, backend, dtype, case, route, parity_of):
    native.set_num_threads(thread_counts.of_case(case, op.__name__, dtype, route))
    parity.check(op, case, dtype, backend, route)
    parity_of(backend, route)


def test_cpu_and_eager_are_there_to_be_checked():
    assert {b.name for b in registry.loaded() if registry.unavailable(b) is None} >= {"cpu", "eager"}

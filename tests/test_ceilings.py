"""The bench's ceilings of arithmetic: libraries' products and registers, none of which runs a product of ours."""

from __future__ import annotations

import time

import ml_dtypes
import numpy as np
import pytest
from fusionkit_backends.cpu import benchmark, benchmark_mc2, library_products, runtime, targets
from fusionkit_bench import contestants, processor, roofs, rounds
from fusionkit_bench.result import Result
from fusionkit_bench.subject import FORWARD, TRAINING, Subject
from pytest_benchmark.stats import Stats

from fusionkit import extras
from fusionkit.spec import Cost

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
ATTENTION = Subject("flash_attention", "Sq64-Skv1024-causal", "bfloat16")
SIZE = (33, 65, 47)


@pytest.fixture(autouse=True)
def nothing_kept():
    library_products.calls.cache_clear()
    yield
    library_products.calls.cache_clear()


@pytest.fixture
def without_torch(monkeypatch):
    missing = extras.missing
    text = "torch is not installed"
    monkeypatch.setattr(extras, "missing", lambda *names: text if "torch" in names else missing(*names))


def fastest(*calls, times=15):
    """Seconds of this thread on a processor, which other programs do not change: the least of many rounds in turn."""
    least = [float("inf")] * len(calls)
    for _ in range(times):
        for at, call in enumerate(calls):
            start = time.thread_time()
            call()
            least[at] = min(least[at], time.thread_time() - start)
    return least


def as_float(array):
    if hasattr(array, "float"):  # PyTorch's
        array = array.float()
    return np.asarray(array.numpy() if hasattr(array, "numpy") else array, np.float64)


@pytest.mark.parametrize("isa", runtime.native().tested_isas())
def test_registers_do_the_flops_that_they_say(native, isa):
    """Twice the turns are twice the FLOPs on each thread, and take the longer."""
    native.set_isa(isa)
    native.set_num_threads(2)
    for dtype in DTYPES:
        once = native.multiply_in_registers(dtype, 1)
        assert native.multiply_in_registers(dtype, 10) == 10 * once and once % 2 == 0
        has_pairs = "avx512bf16" in targets.features(targets.named(isa.removesuffix("_model")))
        assert (once > 0) is (dtype == "float32" or has_pairs)
    native.set_num_threads(1)
    long, short = fastest(*(lambda n=n: native.multiply_in_registers("float32", n) for n in (40_000, 10_000)))
    assert 2 < long / short < 8


@pytest.mark.parametrize("isa", runtime.native().available_isas())
def test_no_product_outruns_registers(native, isa):
    native.set_isa(isa)
    native.set_num_threads(1)
    x, weight = np.ones((192, 512), np.float32), np.ones((512, 512), np.float32)
    flops, turns = 2.0 * 192 * 512 * 512, 50_000
    peak = native.multiply_in_registers("float32", turns)
    registers, product = fastest(
        lambda: native.multiply_in_registers("float32", turns), lambda: native.linear(x, weight, None)
    )
    assert peak / registers > 0.8 * flops / product


def test_registers_say_what_they_ask_for(native):
    with pytest.raises(ValueError, match='dtype must be float32 or bfloat16, got "float16"'):
        native.multiply_in_registers("float16", 1)
    with pytest.raises(ValueError, match="turns must be at least 1, got 0"):
        native.multiply_in_registers("float32", 0)


def test_onednn_multiplies_whatever_the_ops_run(native):
    """Another instruction set for ours leaves its bits as they are."""
    if not native.has_onednn():
        pytest.skip("there is no oneDNN")
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal(SIZE[:2], np.float32), rng.standard_normal(SIZE[1:], np.float32)
    results = []
    for isa in native.available_isas():
        native.set_isa(isa)
        y = np.empty((SIZE[0], SIZE[2]), np.float32)
        native.onednn_product(weight)(x, y)
        results.append(y)
    assert np.abs(results[0] - x.astype(np.float64) @ weight).max() < 1e-4
    assert all((y == results[0]).all() for y in results)
    with pytest.raises(ValueError, match=r"onednn_product: x must be \[33, 65\], got"):
        native.onednn_product(weight)(x[:, 1:].copy(), y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("apart", [False, True], ids=["beside_paddle", "apart"])
def test_a_library_multiplies_what_its_name_says(dtype, apart):
    calls = library_products.calls(*SIZE, dtype, apart)
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal(SIZE[:2], np.float32), rng.standard_normal(SIZE[1:], np.float32)
    assert calls
    for name, call in calls.items():
        library, _, multiplied_in = name.rpartition(", ")
        assert library.startswith(("NumPy", "PyTorch") if apart else "Paddle")
        left, right = (each.astype(DTYPES[multiplied_in]).astype(np.float64) for each in (x, weight))
        error = np.abs(as_float(call()) - left @ right).max()
        assert error < (1e-4 if multiplied_in == "float32" else 0.2), name


class LibrariesAlone:
    """The kernel library without what multiplies of its own."""

    def __init__(self, native):
        self.has_onednn, self.onednn_product = native.has_onednn, native.onednn_product
        self.multiply_in_registers = native.multiply_in_registers


def test_no_product_of_ours_is_among_them(native, monkeypatch):
    monkeypatch.setattr(runtime, "native", lambda: LibrariesAlone(native))
    for dtype in DTYPES:
        for call in library_products.calls(*SIZE, dtype, False).values():
            call()


def test_without_torch_numpy_is_the_ceiling_apart(without_torch, monkeypatch):
    monkeypatch.setattr(benchmark, "STANDARD_PRODUCT", SIZE)
    made = ATTENTION.arguments()
    found = contestants.libraries("cpu", ATTENTION, made)
    assert {name for name, _ in found} == {"product, NumPy, float32"}


def test_libraries_apart_never_load_the_kernels(monkeypatch):
    """They would bring Paddle's threads into the process."""
    monkeypatch.setattr(runtime, "native", lambda: pytest.fail("the kernels were asked for"))
    monkeypatch.setattr(benchmark, "STANDARD_PRODUCT", SIZE)
    assert contestants.libraries("cpu", ATTENTION, ATTENTION.arguments())


def test_ceilings_of_arithmetic_are_named_by_who_computes_them(monkeypatch):
    monkeypatch.setattr(benchmark, "STANDARD_PRODUCT", SIZE)
    made = ATTENTION.arguments()
    dims = ATTENTION.dims(made)
    cost = ATTENTION.cost(dims, TRAINING)
    found = contestants.ceilings(benchmark, ATTENTION, dims, cost)
    assert {"product, Paddle, float32", "peak, float32"} <= set(found)
    assert all(found[name].factor > 0 for name in found if name.startswith(("product", "peak")))


def stats_of(**medians):
    found = {}
    for name, seconds in medians.items():
        found[name.replace("_", ", "), FORWARD] = Stats()
        found[name.replace("_", ", "), FORWARD].update(seconds)
    return found


def test_the_fastest_library_is_the_ceiling_and_its_name_is_told():
    stats = stats_of(product_NumPy=3.0, product_PyTorch=2.0, peak_float32=1.5, peak_bfloat16=1.0, kernel=4.0)
    measured = Result(ATTENTION, {FORWARD: Cost(8.0, 1.0, 1.0)}, False, stats)
    assert measured.nearest_ceiling(FORWARD) == "product, PyTorch"
    assert measured.share_of_ceiling(FORWARD) == 0.5 and measured.share_of_peak(FORWARD) == 0.25
    assert list(roofs.best([measured]).items()) == [
        ("peak, bfloat16", (8.0 / 1.0, "GFLOP/s")),
        ("peak, float32", (8.0 / 1.5, "GFLOP/s")),
        ("product, PyTorch", (8.0 / 2.0, "GFLOP/s")),
        ("product, NumPy", (8.0 / 3.0, "GFLOP/s")),
    ]


def test_a_library_that_is_far_behind_is_timed_no_more():
    first = {("product, NumPy", FORWARD): 2.0, ("product, PyTorch", FORWARD): 1.0, ("kernel", FORWARD): 9.0}
    first |= {("product, NumPy", TRAINING): 2.0}
    assert [key for key in first if rounds.is_beaten(key, first)] == [("product, NumPy", FORWARD)]


@pytest.mark.parametrize(("library", "whose"), [("onednn", "oneDNN's"), ("blocked", "the own")])
def test_baselines_of_mc2_say_whose_product_ran(monkeypatch, library, whose):
    class Native:
        def matmul_library(self):
            return library

    monkeypatch.setattr(runtime, "native", Native)
    names = [*benchmark_mc2.products(), *benchmark_mc2.gradients()]
    assert len(names) == 4 and all(name.startswith(f"{whose} product") for name in names)


def test_the_processor_is_told_from_others_of_its_name(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    first, second = (f"model name\t: Fast\ncpu family\t: {family}\nmodel\t\t: 1\n" for family in (25, 26))
    cpuinfo.write_text(f"{first}\n{second}")
    assert processor.name(cpuinfo) == "Fast (family 25, model 1)"
    assert processor.name(tmp_path / "none") and "model name" not in processor.name(tmp_path / "none")

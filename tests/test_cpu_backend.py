"""The CPU backend: each instruction set, threads, fork, one OpenMP runtime, reproducibility."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from fusionkit_backends.cpu import runtime

import fusionkit as fk
from fusionkit import parity
from tests import cpu_targets, product_rates, thread_counts
from tests.op_names import CPU_OPS


@pytest.fixture(scope="module", autouse=True)
def products_measured_once():
    put_back = product_rates.measured_once()
    yield
    put_back()


def forced():
    best = runtime.native().isa()
    return [isa for isa in cpu_targets.tested() if isa != best]


def isa_cases():
    for isa in forced():
        for name in filter(functools.partial(cpu_targets.worth_testing, isa), CPU_OPS):
            for case in getattr(fk, name).spec.all_cases:
                if not case.llama:
                    yield pytest.param(isa, name, case, id=f"{isa}-{name}-{case.name}")


@pytest.mark.parametrize("isa, name, case", list(isa_cases()))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_forced_instruction_set_agrees_with_float64(native, isa, name, case, dtype, parity_of):
    native.set_isa(isa)
    native.set_num_threads(thread_counts.of_case(case, isa, name, dtype))
    parity.check(getattr(fk, name), case, dtype, "cpu", "numpy")
    parity_of(f"cpu ({isa})", "numpy")


def in_process(code, **environment):
    script = f"import fusionkit as fk, numpy as np\n{code}"
    run = subprocess.run([sys.executable, "-c", script], env=os.environ | environment, capture_output=True, text=True)
    return run.stdout.strip() if run.returncode == 0 else run.stderr.strip().splitlines()[-1]


CALL = "y = fk.fusion_rms_norm(np.ones((2, 8), 'f'), np.ones(8, 'f'))\n"
ISA = CALL + "from fusionkit_backends.cpu import runtime\nprint(runtime.native().isa())"


def test_environment_and_file_force_an_instruction_set(tmp_path):
    assert in_process(ISA, FUSIONKIT_CPU_ISA="portable") == "portable"
    file = tmp_path / "settings.toml"
    file.write_text('[cpu]\nisa = "portable"\n')
    assert in_process(ISA, FUSIONKIT_CONFIG=str(file)) == "portable"


@pytest.mark.parametrize("order", [("paddle", "fusionkit"), ("fusionkit", "paddle")], ids="-".join)
def test_one_openmp_runtime_whichever_is_imported_first(order, tmp_path):
    """The dynamic linker tells whose GOMP_parallel each library got: Paddle brings libgomp too, and must not use it."""
    use = {
        "paddle": "import paddle; paddle.ones([64, 64]) @ paddle.ones([64, 64])\n",
        "fusionkit": "fk.fused_linear(np.ones((64, 64), 'f'), np.ones((64, 64), 'f'))\n",
    }
    environment = {"OMP_NUM_THREADS": "2", "LD_DEBUG": "bindings", "LD_DEBUG_OUTPUT": str(tmp_path / "log")}
    in_process(use[order[0]] + use[order[1]], **environment)
    bound = {}
    for log in tmp_path.iterdir():
        with log.open(errors="replace") as lines:
            for line in lines:
                if "`GOMP_parallel'" in line:
                    library, runtime_path = re.findall(r"/([^/ ]+) \[0\]", line)
                    bound[library] = runtime_path
    assert {"libfusionkit_cpu.so", "libdnnl.so.3"} <= bound.keys()
    assert set(bound.values()) == {"libiomp5.so"}


def test_fork_after_use_works():
    code = CALL + "import os\npid = os.fork()\n" + CALL + "os._exit(0) if pid == 0 else print(os.waitpid(pid, 0)[1])"
    assert in_process(code, OMP_NUM_THREADS="2") == "0"


def test_omp_num_threads_is_respected():
    code = CALL + "from fusionkit_backends.cpu import runtime\nprint(runtime.native().num_threads())"
    assert in_process(code, OMP_NUM_THREADS="3") == "3"


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_results_do_not_change_from_run_to_run(native, threads):
    native.set_num_threads(threads)
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((67, 129)).astype("f"), rng.standard_normal(129).astype("f")
    grads = [fk.fusion_rms_norm.vjp(x, weight, grad_outputs=x)["weight"] for _ in range(5)]
    assert all(np.array_equal(grads[0], other) for other in grads)


def test_explain_says_that_paddle_copies_a_strided_tensor():
    paddle = pytest.importorskip("paddle")
    x = paddle.ones([8, 4]).transpose([1, 0])
    with fk.use_backend("cpu"):
        explanation = fk.fusion_rms_norm.explain(x, paddle.ones([8]))
    (reasons,) = (reasons for name, _, reasons in explanation.candidates if name == "cpu")
    assert not x.is_contiguous() and reasons == ("x is not contiguous: Paddle copies it",)

"""Threads that call Paddle's custom ops for the first time, all at once."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hanging import HANGING

SOURCES = Path(__file__).parents[1] / "backends/cpu/csrc/paddle"

FIRST_CALLS = """
import sys, threading
import paddle
from fusionkit_backends.cpu import paddle_gradients, paddle_ops

paddle_ops.load()
calls = list(paddle_gradients.calls())
barrier = threading.Barrier(8)
failed = []

def work(number):
    paddle.disable_static()
    for spec, function, arguments in calls:
        tensors = paddle_gradients.tensors_of(spec, arguments)
        barrier.wait()
        try:
            out = function(**tensors)
            out = out[0] if isinstance(out, (tuple, list)) else out
            paddle.autograd.backward([out], [paddle.ones_like(out)])
            inputs = [tensors[each.name] for each in spec.inputs if each.differentiable and each.name in tensors]
            inputs = [each for each in inputs if isinstance(each, paddle.Tensor)]  # a pack has no gradient
            if any(each.grad is None or each.grad.shape != each.shape for each in inputs[:2]):
                raise RuntimeError("a gradient is missing")
        except Exception as error:
            failed.append(f"{spec.name}: {error}")

threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
for each in threads:
    each.start()
for each in threads:
    each.join()
sys.exit("; ".join(failed) or 0)
"""

WATCHED = """
import paddle
from fusionkit_backends.cpu import paddle_gradients, paddle_ops

run = paddle._C_ops._run_custom_op
paddle._C_ops._run_custom_op = lambda op, *arguments: (print(op), run(op, *arguments))[1]
"""

INTERRUPTED = """
calls = paddle_gradients.calls

def interrupted():
    yield next(calls())
    raise KeyboardInterrupt

paddle_gradients.calls = interrupted
try:
    paddle_ops.load()
except KeyboardInterrupt:
    paddle_gradients.calls = calls
"""


def test_first_calls_on_many_threads_have_their_gradients():
    """Without `connect` 3 of 20 such processes crashed."""
    done = subprocess.run([sys.executable, "-c", FIRST_CALLS], capture_output=True, text=True, timeout=HANGING)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("before", ["", INTERRUPTED], ids=["at once", "after Ctrl-C"])
def test_every_differentiable_custom_op_is_connected(before):
    ops = {op for source in SOURCES.glob("*.cc") for op in re.findall(r"PD_BUILD_GRAD_OP\((\w+)\)", source.read_text())}
    code = f"{WATCHED}{before}\npaddle_ops.load()"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=HANGING)
    assert done.returncode == 0, done.stderr[-2000:]
    assert set(done.stdout.split()) == ops and len(ops) >= 8

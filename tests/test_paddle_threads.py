"""Threads that call Paddle's custom ops for the first time, all at once."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from fusionkit_backends.cpu import paddle_gradients

SOURCES = Path(__file__).parents[1] / "backends/cpu/csrc/paddle"

FIRST_CALLS = """
import sys, threading
import paddle
from fusionkit_backends.cpu import paddle_gradients, paddle_ops

paddle_ops.load()
ops = list(paddle_gradients.SMALLEST.items())
barrier = threading.Barrier(8)
failed = []

def work(number):
    paddle.disable_static()
    for op, (sizes, arguments) in ops:
        tensors = [paddle.ones(size) for size in sizes]
        for each in tensors:
            each.stop_gradient = False
        barrier.wait()
        try:
            out = paddle_ops.run(op, *tensors, *arguments)[0]
            paddle.autograd.backward([out], [paddle.ones_like(out)])
            if any(each.grad is None or each.grad.shape != each.shape for each in tensors[:2]):
                raise RuntimeError("a gradient is missing")
        except Exception as error:
            failed.append(f"{op}: {error}")

threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
for each in threads:
    each.start()
for each in threads:
    each.join()
sys.exit("; ".join(failed) or 0)
"""


def test_first_calls_on_many_threads_have_their_gradients():
    """Without `connect` 3 of 20 such processes crashed."""
    done = subprocess.run([sys.executable, "-c", FIRST_CALLS], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_differentiable_custom_op_is_connected():
    ops = {op for source in SOURCES.glob("*.cc") for op in re.findall(r"PD_BUILD_GRAD_OP\((\w+)\)", source.read_text())}
    assert ops == set(paddle_gradients.SMALLEST) | {paddle_gradients.LOSS}

"""Every parity case that fits in a second, through NumPy arrays, in a process that a memory error ends.

    python -m tests.parity_process [--native FOLDER] [--guard end|begin] [--plant MISTAKE]

FOLDER holds a sanitized `_native`; see sanitize.py. Paddle is not imported: sanitizers find fault with it before any
kernel runs.
"""

from __future__ import annotations

import argparse
import faulthandler
import functools
import sys
from collections import Counter

import fusionkit_backends.cpu
import numpy as np
from fusionkit_backends.cpu import runtime

import fusionkit as fk
from fusionkit import parity
from tests.guard_pages import MISTAKES, at_address, guarded
from tests.op_names import CPU_OPS


def settings(native):
    """Each instruction set with our own product, and the best one with oneDNN where it is there."""
    best = native.isa()
    if native.matmul_library() == "onednn":
        yield best, "onednn"
    native.load_onednn("")
    for isa in native.available_isas():
        native.set_isa(isa)
        yield isa, "blocked"


def run(native, placed):
    counts = Counter()
    for isa, library in settings(native):
        for name in CPU_OPS:
            op = getattr(fk, name)
            for case in op.spec.cases:
                for dtype in () if case.llama else ("float32", "bfloat16", "float16"):
                    parity.check(op, case, dtype, "cpu", "numpy", placed=placed)
                    counts[f"{isa}, products by {library}"] += 1
    for setting, count in counts.items():
        print(f"  {setting}: {count} parity cases right", flush=True)


def plant(native, mistake, edge):
    """A kernel gets an array with one element more than its memory has."""
    array = np.ones(32, np.float32)
    array = guarded(array, edge) if edge else array
    address = array.__array_interface__["data"][0] - (array.itemsize if "begin" in mistake else 0)
    claimed = at_address(address, array.dtype, array.size + 1)
    if "write" in mistake:
        native.scale(claimed, np.full(1, 2, np.float32))
    else:
        native.swiglu(claimed, np.ones(33, np.float32))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--native")
    parser.add_argument("--guard", choices=("end", "begin"))
    parser.add_argument("--plant", choices=MISTAKES)
    options = parser.parse_args()
    if options.native:
        fusionkit_backends.cpu.__path__.insert(0, options.native)
    else:
        faulthandler.enable()
    native = runtime.native()
    assert native.__file__.startswith(options.native or "")
    if options.plant:
        return plant(native, options.plant, options.guard)
    # Under --guard, every array that parity hands to a kernel lies at a faulting page.
    run(native, functools.partial(guarded, edge=options.guard) if options.guard else parity.as_it_is)
    assert "paddle" not in sys.modules


if __name__ == "__main__":
    main()

"""Every parity case that fits in a second, through NumPy arrays, in a process that a memory error ends.

    python -m tests.parity_process [--native FOLDER] [--guard end|begin] [--plant MISTAKE] [--share K/N]

FOLDER holds a sanitized `_native`; see sanitize.py. `--share 0/2` runs every second case, from the first.
Paddle is not imported: sanitizers find fault with it before any kernel runs.
"""

from __future__ import annotations

import argparse
import faulthandler
import functools
import itertools
import sys
from collections import Counter

import fusionkit_backends.cpu
import numpy as np
from fusionkit_backends.cpu import runtime

import fusionkit as fk
from fusionkit import parity
from fusionkit.dtypes import FLOATING
from tests import cpu_targets, kept_references, product_rates, thread_counts
from tests.guard_pages import MISTAKES, at_address, guarded
from tests.op_names import CPU_OPS


def settings(native):
    """Each library of products, and the instruction sets that run with it: the best one alone with oneDNN."""
    if native.matmul_library() == "onednn":
        yield "onednn", [native.isa()]
    native.load_onednn("")
    yield "blocked", native.tested_isas()


def cases(share):
    """(op, case, dtype); of N processes, number K runs those whose number is K modulo N."""
    ops = [getattr(fk, name) for name in CPU_OPS]
    found = [(op, case, dtype) for op in ops for case in op.spec.all_cases if not case.llama for dtype in FLOATING]
    number, processes = map(int, share.split("/"))
    return found[number::processes]


def run(native, placed, share):
    counts = Counter()
    for library, isas in settings(native):
        for (op, case, dtype), isa in itertools.product(cases(share), isas):
            if not cpu_targets.worth_testing(isa, op.__name__):
                continue
            native.set_isa(isa)
            native.set_num_threads(thread_counts.of_case(case, op.__name__, dtype))
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
    parser.add_argument("--share", metavar="K/N", default="0/1")
    options = parser.parse_args()
    if options.native:
        fusionkit_backends.cpu.__path__.insert(0, options.native)
    else:
        faulthandler.enable()
    native = runtime.native()
    assert native.__file__.startswith(options.native or "")
    if options.plant:
        return plant(native, options.plant, options.guard)
    product_rates.measured_once()
    kept_references.keep()
    # Under --guard, every array that parity hands to a kernel lies at a faulting page.
    run(native, functools.partial(guarded, edge=options.guard) if options.guard else parity.as_it_is, options.share)
    assert "paddle" not in sys.modules


if __name__ == "__main__":
    main()

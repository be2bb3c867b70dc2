"""`fusionkit parity`: every case of every op on one backend, against float64."""

from __future__ import annotations

import argparse

from tqdm import tqdm

import fusionkit
from fusionkit import parity, registry
from fusionkit.backend import Kernel
from fusionkit.errors import PluginError
from fusionkit.ops import OP_NAMES

NAME = "parity"
HELP = "run every case on a backend and hold the results against float64"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", default="cpu", help="the backend to prove (default: cpu)")
    parser.add_argument("--op", choices=OP_NAMES, action="append", help="only this op; may be repeated")
    parser.add_argument("--route", choices=parity.ALL_ROUTES, action="append", help="only this way in; may be repeated")


def run(options: argparse.Namespace) -> int:
    registry.require_name(options.backend, "--backend")
    plugin = next(plugin for plugin in registry.plugins() if plugin.name == options.backend)
    if plugin.backend is None:
        raise PluginError(f"{plugin.name} is not available: {plugin.problem}")
    backend = plugin.backend
    planned = [
        (getattr(fusionkit, op), case, dtype, route)
        for op in options.op or OP_NAMES
        if op in backend.kernels
        for case in getattr(fusionkit, op).spec.cases
        for dtype in _dtypes(backend.kernels[op])
        for route in options.route or parity.ALL_ROUTES
        if parity.applies(getattr(fusionkit, op).spec, route)
    ]
    accepted = [each for each in planned if parity.judged(*each[:3], options.backend, each[3])]
    failures = []
    for op, case, dtype, route in tqdm(accepted, unit="case"):
        try:
            parity.check(op, case, dtype, options.backend, route)
        except parity.ParityError as error:
            failures.append(str(error))
    print("\n".join(failures))
    print(
        f"{options.backend}: {len(accepted) - len(failures)} of {len(accepted)} cases right, "
        f"{len(planned) - len(accepted)} refused by what the backend declares"
    )
    return int(bool(failures) or not accepted)


def _dtypes(kernel: Kernel) -> list[str]:
    """Of the kernel and of those that serve one framework."""
    return list(dict.fromkeys(dtype for each in (kernel, *kernel.for_framework.values()) for dtype in each.dtypes))

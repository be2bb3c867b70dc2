"""`fusionkit ops`: the op x backend table, read from what the backends declare."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from fusionkit import kernel_function, registry, select
from fusionkit.backend import PROOF_IN_WORDS, Backend, Kernel
from fusionkit.dtypes import FLOATING, short_dtype
from fusionkit.ops import OP_NAMES, load_spec

HELP = "print the op x backend table"

_FIRST = {"paddle", "numpy"}  # a backend's first column is about these; NumPy arrays are carried to Paddle


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--markdown", action="store_true", help="as the README holds it")
    parser.add_argument("--conditions", action="store_true", help="list every kernel's conditions below the table")
    parser.add_argument("--json", action="store_true", help="everything, as JSON")


def run(options: argparse.Namespace) -> int:
    backends = sorted(registry.loaded(), key=lambda backend: (backend.owns("*"), backend.name))
    if options.json:
        print(json.dumps(_as_json(backends), indent=1))
        return 0
    columns = [(backend, framework) for backend in backends for framework in _frameworks(backend)]
    header = ["op", "returns", *(_title(*column) for column in columns)]
    rows = [
        [op, _returns(op), *(_cell(op, b.kernels.get(op), framework) for b, framework in columns)] for op in OP_NAMES
    ]
    print(_markdown(header, rows) if options.markdown else _columns(header, rows))
    for status in registry.backends():
        if not status.available and not options.markdown:
            print(f"\n{status}")
    if options.conditions:
        for backend in backends:
            for op, kernel in backend.kernels.items():
                for framework, each in {"": kernel, **kernel.for_framework}.items():
                    print(f"\n{backend.name} {op}" + (f", {framework} tensors" if framework else ""))
                    print("\n".join(f"  {rule}" for rule in select.conditions(each, op)))
    return 0


def _as_json(backends: list[Backend]) -> dict[str, Any]:
    """Every backend's state; for each op its kernels by backend and, where they differ, by framework."""
    kernels = {op: {b.name: _kernel(op, b.kernels[op]) for b in backends if op in b.kernels} for op in OP_NAMES}
    statuses = [dataclasses.asdict(status) for status in registry.backends()]
    return {"backends": statuses, "ops": kernels, "returns": {op: _returns(op) for op in OP_NAMES}}


def _kernel(op: str, kernel: Kernel) -> dict[str, Any]:
    return {
        "frameworks": sorted(kernel.functions),
        "dtypes": kernel.dtypes,
        "directions": kernel.directions,
        "conditions": [str(rule) for rule in select.conditions(kernel, op)],
        "for_framework": {framework: _kernel(op, each) for framework, each in kernel.for_framework.items()},
    }


def _frameworks(backend: Backend) -> list[str]:
    """Whose tensors have a column of their own: limits differ by framework."""
    kernels = backend.kernels.values()
    served = {f for kernel in kernels for each in (kernel, *kernel.for_framework.values()) for f in each.functions}
    return [*(["paddle"] if served & _FIRST or not served else []), *sorted(served - _FIRST)]


def _title(backend: Backend, framework: str) -> str:
    name = backend.name if framework in _FIRST else f"{backend.name}, {framework}"
    proof = PROOF_IN_WORDS[backend.proven_on]
    return f"{name} ({proof})" if proof else name


def _returns(op: str) -> str:
    """The results' names as the spec has them; several are a tuple."""
    outputs = load_spec(op).outputs
    always = ", ".join(output.name for output in outputs if output.when is None)
    more = [output for output in outputs if output.when is not None]
    return always + "".join(f" (with {output.when}: {always}, {output.name})" for output in more)


def _cell(op: str, kernel: Kernel | None, framework: str) -> str:
    wanted = _FIRST if framework in _FIRST else {framework}
    if kernel is None or not wanted & (serving := kernel.serving(framework)).functions.keys():
        return "-"
    dtypes = "yes" if serving.dtypes == FLOATING else " ".join(map(short_dtype, serving.dtypes))
    inference = load_spec(op).reference_vjp is None
    cell = dtypes if inference or "backward" in serving.directions else f"{dtypes}, forward only"
    absent = kernel_function.left_out(serving, op)
    return f"{cell}, no {' or '.join(absent)}" if absent else cell


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _columns(header: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(line[column]) for line in [header, *rows]) for column in range(len(header))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in [header, *rows]
    )

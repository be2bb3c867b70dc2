"""`fusionkit explain`: which backend would run a call of given shapes and dtypes, and why."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
from typing import Any

import fusionkit
from fusionkit.errors import argument_error, nearest
from fusionkit.ops import OP_NAMES
from fusionkit.spec import GroupSpec, TensorSpec

HELP = "say which backend would run a call, and why: fusionkit explain fusion_rms_norm x=2048x5120:bfloat16 weight=5120"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("op")
    tensor = (
        "a tensor as 2048x5120:bfloat16 or 2048x5120:bf16 (float32 when left out, ? for an unknown size), or a value;"
        " group=8 for 8 ranks"
    )
    parser.add_argument("arguments", nargs="*", metavar="NAME=VALUE", help=tensor)
    parser.add_argument("--device", default="cpu", help="a device such as cpu or toy:0; it need not be here")
    parser.add_argument("--backend", help="as in use_backend: a name, or names in order, separated by commas")
    parser.add_argument("--training", action="store_true", help="gradients are wanted")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(options: argparse.Namespace) -> int:
    if options.op not in OP_NAMES:
        raise ValueError(f"no op is called {options.op!r}; {nearest(options.op, OP_NAMES)}")
    op = getattr(fusionkit, options.op)
    tensors = {declared.name for declared in op.spec.inputs}
    parsed = [_parse(options.op, text, tensors) for text in options.arguments]
    arguments = dict(parsed)
    if isinstance(arguments.get("group"), int):
        arguments["group"] = GroupSpec(arguments["group"])
    unknown = arguments.keys() - op.spec.parameters.parameters.keys()
    if unknown or len(parsed) != len(arguments):
        wrong = ", ".join(sorted(unknown)) or "one twice"
        raise argument_error(options.op, "arguments", f"each of {op.spec.parameters} once", wrong)
    wish = options.backend.split(",") if options.backend else None
    backend = wish[0] if wish and len(wish) == 1 else wish
    explanation = op.explain(**arguments, device=options.device, backend=backend, training=options.training)
    print(json.dumps(_as_json(explanation), indent=1) if options.json else explanation)
    return 0 if explanation.chosen else 1


def _as_json(explanation: fusionkit.Explanation) -> dict[str, Any]:
    keys = ("backend", "verdict", "reasons")
    candidates = [dict(zip(keys, candidate, strict=True)) for candidate in explanation.candidates]
    return {**dataclasses.asdict(explanation), "candidates": candidates}


def _parse(op: str, text: str, tensors: set[str]) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argument_error(op, repr(text), "NAME=VALUE", "no '='", advice="For a tensor: x=2048x5120:bfloat16")
    if name in tensors:
        return name, None if value == "None" else _tensor(op, name, value)
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        raise argument_error(op, name, "a Python value", value) from None


def _tensor(op: str, name: str, text: str) -> TensorSpec:
    sizes, _, dtype = text.partition(":")
    try:
        shape = tuple(-1 if size == "?" else int(size) for size in sizes.split("x")) if sizes else ()
    except ValueError:
        raise argument_error(op, name, "sizes joined by x, such as 2048x5120:bfloat16", text) from None
    return TensorSpec(shape, dtype or "float32")

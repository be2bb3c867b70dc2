"""One file per op: its spec. The files are the list of ops, by name, which is the order of every table."""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path

from fusionkit.spec import OpSpec

OP_NAMES = tuple(sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py")))


@cache
def load_spec(name: str) -> OpSpec:
    spec: OpSpec = importlib.import_module(f"fusionkit.ops.{name}").spec
    return spec

"""One row of the benchmark: an op, one of its timed calls and a dtype."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import fusionkit
from fusionkit import arguments, parity
from fusionkit.call import describe
from fusionkit.frameworks.numpy import DTYPES
from fusionkit.op import Op
from fusionkit.ops import OP_NAMES
from fusionkit.spec import Benchmark, Cost

FORWARD, TRAINING = "forward", "forward + backward"


@dataclass(frozen=True)
class Subject:
    """Names alone, so that it travels between processes; `benchmark` finds the rest in the spec."""

    op_name: str
    case_name: str
    dtype: str

    @property
    def op(self) -> Op:
        op: Op = getattr(fusionkit, self.op_name)
        return op

    @property
    def benchmark(self) -> Benchmark:
        return next(each for each in self.op.spec.benchmarks if each.case.name == self.case_name)

    @property
    def directions(self) -> tuple[str, ...]:
        trains = self.op.spec.reference_vjp is not None and self.benchmark.packed is None
        return (FORWARD, TRAINING) if trains else (FORWARD,)

    def arguments(self) -> dict[str, Any]:
        """As NumPy arrays and scalars; the same in every process."""
        return parity.arguments_of(self.op.spec, self.benchmark.case, self.dtype)

    def dims(self, made: dict[str, Any]) -> dict[str, Any]:
        bound, framework = arguments.bind(self.op.spec, (), made)
        call = describe(self.op.spec, bound, framework, training=False)
        scalars = {name: value for name, value in call.values.items() if isinstance(value, bool | int | float)}
        return {**scalars, **call.dims, **self.benchmark.dims}

    def cost(self, dims: Mapping[str, Any], direction: str) -> Cost:
        return self.op.spec.cost(dims, DTYPES[self.dtype].itemsize, direction == TRAINING)


def subjects(op_names: list[str] | None = None) -> Iterator[Subject]:
    for name in op_names or OP_NAMES:
        for benchmark in getattr(fusionkit, name).spec.benchmarks:
            for dtype in benchmark.dtypes:
                yield Subject(name, benchmark.case.name, dtype)


def leading(found: Iterable[Subject]) -> list[Subject]:
    """One for each op: the first of its timed calls, which has Llama 2 13B's sizes; in bfloat16 if it is there."""
    first: dict[str, Subject] = {}
    for each in found:
        before = first.setdefault(each.op_name, each)
        if each.case_name == before.case_name and each.dtype == "bfloat16":
            first[each.op_name] = each
    return list(first.values())

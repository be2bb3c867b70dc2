"""The targets that tests of the cpu backend run, models included, and the ops that are worth it on each."""

from __future__ import annotations

from fusionkit_backends.cpu import runtime, targets


def tested() -> list[str]:
    return list(runtime.native().tested_isas())


def worth_testing(isa: str, op: str) -> bool:
    """A model computes some ops; the code of the others is another target's, and tested there."""
    kernels = targets.named(isa.removesuffix("_model")).kernels
    return not isa.endswith("_model") or kernels is None or op in kernels

"""`fusionkit parity`: every case of every op on one backend, against float64."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

from tqdm import tqdm

import fusionkit
from fusionkit import extras, parity, registry
from fusionkit.backend import Backend, Kernel
from fusionkit.capability import Verdict
from fusionkit.comparison import ParityError
from fusionkit.errors import PluginError
from fusionkit.op import Op
from fusionkit.ops import OP_NAMES
from fusionkit.spec import Case

HELP = "run every case on a backend and hold the results against float64"
Planned = tuple[Op, Case, str, parity.Route]


@dataclass(frozen=True)
class Outcome:
    """What ran on a backend: cases right, cases refused by what it declares, the errors of the others, and the routes
    that could not run here, each with what installs it. `nothing_ran` says why no case did."""

    backend: str
    right: int
    refused: int
    failures: tuple[str, ...]
    left_out: tuple[str, ...]
    nothing_ran: str | None

    @property
    def proven(self) -> bool:
        return self.right > 0 and not self.failures

    def __str__(self) -> str:
        ran = self.right + len(self.failures)
        counts = f"{self.right} of {ran} cases right, {self.refused} refused by what the backend declares"
        return "\n".join([*self.failures, *self.left_out, f"{self.backend}: {self.nothing_ran or counts}"])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", default="cpu", help="the backend to prove (default: cpu)")
    parser.add_argument("--op", choices=OP_NAMES, action="append", help="only this op; may be repeated")
    parser.add_argument("--route", choices=parity.ALL_ROUTES, action="append", help="only this way in; may be repeated")
    parser.add_argument("--json", action="store_true", help="the counts and failures as JSON")


def run(options: argparse.Namespace) -> int:
    backend = _backend(options.backend)
    missing = registry.unavailable(backend)
    if missing is not None:
        outcome = Outcome(backend.name, 0, 0, (), (), f"not here, nothing ran: {missing}")
    else:
        outcome = _prove(backend, options.op or OP_NAMES, options.route or ())
    print(json.dumps(asdict(outcome), indent=1) if options.json else outcome)
    return int(not outcome.proven)


def _backend(name: str) -> Backend:
    registry.require_name(name, "--backend")
    plugin = next(plugin for plugin in registry.plugins() if plugin.name == name)
    if plugin.backend is None:
        raise PluginError(f"{plugin.name} is not available: {plugin.problem}")
    return plugin.backend


def _prove(backend: Backend, ops: Iterable[str], wanted: Iterable[parity.Route]) -> Outcome:
    routes, left_out = _routes(backend, tuple(wanted))
    planned = list(_planned(backend, ops, routes))
    verdicts = [parity.judged(op, case, dtype, backend.name, route) for op, case, dtype, route in planned]
    accepted = [each for each, verdict in zip(planned, verdicts, strict=True) if verdict]
    failures = tuple(_failures(backend, accepted))
    right, refused = len(accepted) - len(failures), len(planned) - len(accepted)
    why = None if accepted else f"nothing ran: {_why(backend, verdicts)}"
    return Outcome(backend.name, right, refused, failures, left_out, why)


def _routes(backend: Backend, wanted: tuple[parity.Route, ...]) -> tuple[list[parity.Route], tuple[str, ...]]:
    """The routes that a kernel of the backend serves and whose framework is here, and what is said of the others."""
    served = [route for route in wanted or parity.ALL_ROUTES if parity.serves(backend, route)]
    absent = {route: text for route in served if (text := extras.missing(*parity.needs(route)))}
    for route in wanted:
        if route in absent:
            raise ValueError(f"parity: --route {route}: {absent[route]}")
    left_out = tuple(f"{backend.name}: the route {route} is left out: {text}" for route, text in absent.items())
    return [route for route in served if route not in absent], left_out


def _planned(backend: Backend, ops: Iterable[str], routes: Iterable[parity.Route]) -> Iterator[Planned]:
    for op in (getattr(fusionkit, name) for name in ops if name in backend.kernels):
        for case in op.spec.all_cases:
            for dtype in _dtypes(backend.kernels[op.__name__]):
                yield from ((op, case, dtype, route) for route in routes if parity.applies(op.spec, case, route))


def _failures(backend: Backend, accepted: list[Planned]) -> Iterator[str]:
    for op, case, dtype, route in tqdm(accepted, unit="case", disable=not accepted):
        try:
            parity.check(op, case, dtype, backend.name, route)
        except ParityError as error:
            yield str(error)


def _why(backend: Backend, verdicts: list[Verdict]) -> str:
    """The reason that refused most cases, when all were."""
    reasons = Counter(reason for verdict in verdicts for reason in verdict.reasons[:1])
    return reasons.most_common(1)[0][0] if reasons else f"{backend.name} has no kernel for such ops and routes"


def _dtypes(kernel: Kernel) -> list[str]:
    """Of the kernel and of those that serve one framework."""
    return list(dict.fromkeys(dtype for each in (kernel, *kernel.for_framework.values()) for dtype in each.dtypes))

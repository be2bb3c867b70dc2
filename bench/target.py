"""Ratios that a backend promises, and whether a run reached them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fusionkit_bench.result import PEERS, Result


@dataclass(frozen=True)
class Target:
    """A ratio that must be at least some value.

    Args:
        op: its name, or a regular expression that matches the whole of it; so too case, dtype and state.
        against: "ceiling": the kernel's rate over the ceiling's; "kernel": the public op's rate over the kernel's;
            "torch" or "paddle": the peer's time over the public op's, both in processes as they come; "case NAME": the
            kernel's rate over that of another case of the op.
        at_least: the ratio.
        direction: "forward" or "forward + backward".
    """

    op: str
    case: str
    direction: str
    against: str
    at_least: float
    dtype: str = ".*"
    state: str = ".*"

    def applies(self, result: Result) -> bool:
        subject = result.subject
        pairs = (
            (self.op, subject.op_name),
            (self.case, subject.case_name),
            (self.dtype, subject.dtype),
            (self.state, result.state),
        )
        return self.direction in subject.directions and all(re.fullmatch(*pair) for pair in pairs)

    def ratio(self, result: Result, results: Sequence[Result]) -> float | None:
        """None when what it is held against was not measured."""
        if self.against == "ceiling":
            return result.share_of_ceiling(self.direction)
        if self.against == "kernel":
            return result.share_of_kernel(self.direction)
        if self.against in PEERS:
            return result.times_faster(self.against, self.direction)
        other = next((other for other in results if self._is_other(result, other)), None)
        return None if other is None else result.rate(self.direction)[0] / other.rate(self.direction)[0]

    def _is_other(self, result: Result, other: Result) -> bool:
        same = (other.subject.op_name, other.subject.dtype) == (result.subject.op_name, result.subject.dtype)
        return same and other.subject.case_name == self.against.removeprefix("case ")


@dataclass(frozen=True)
class Judged:
    """A target held against one result."""

    target: Target
    result: Result
    ratio: float | None

    @property
    def reached(self) -> bool:
        return self.ratio is not None and self.ratio >= self.target.at_least


def judge(targets: Sequence[Target], results: Sequence[Result]) -> Iterator[Judged]:
    for target in targets:
        for result in results:
            if target.applies(result):
                yield Judged(target, result, target.ratio(result, results))

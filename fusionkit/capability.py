"""What a kernel can run, declared as data.

A predicate is judged against a `Call` and answers yes, no or unknown, with the reason for a person. The same
declaration serves dispatch, `explain`, the op x backend table and boundary tests (`boundaries`: values at its edges).
A predicate on a dimension that is not known while a graph is traced is unknown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from fusionkit.call import Call
from fusionkit.spec import UNKNOWN

Answer = Literal["yes", "no", "unknown"]


@dataclass(frozen=True)
class Verdict:
    """Whether something can run, and why."""

    answer: Answer
    reasons: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.answer == "yes"


YES = Verdict("yes")


def all_of(verdicts: Iterator[Verdict] | list[Verdict]) -> Verdict:
    """No as soon as one says no, else unknown if one does; every reason of the deciding kind is kept."""
    seen = list(verdicts)
    for answer in ("no", "unknown"):
        reasons = tuple(reason for v in seen if v.answer == answer for reason in v.reasons)
        if any(v.answer == answer for v in seen):
            return Verdict(answer, reasons)
    return Verdict("yes", tuple(reason for v in seen for reason in v.reasons))


class Predicate:
    """A condition on a call. `str()` is its rule in words: "head_dim must be a multiple of 64".

    `by_process`: it depends on what ran before in this process, so that no call at its edges can be made from it.
    """

    by_process = False

    def judge(self, call: Call) -> Verdict:
        raise TypeError(f"{type(self).__name__} declares no judge()")

    def given(self) -> str:
        """The rule as a condition: "causal is True"."""
        return str(self).replace(" must be ", " is ")

    def children(self) -> tuple[Predicate, ...]:
        return ()

    def subjects(self) -> tuple[str, ...]:
        """What it asks the call for, its children left out."""
        named = (getattr(self, name, None) for name in ("subject", "first", "second", "argument"))
        return tuple(name for name in named if name is not None)

    def _decide(self, fulfilled: bool, got: object) -> Verdict:
        return YES if fulfilled else Verdict("no", (f"{self}, got {_shown(got)}",))


class OnValue(Predicate):
    """A condition on one subject, in the words of `Call.value`: an axis, an argument, "x.dtype", "device_type"."""

    subject: str

    def judge(self, call: Call) -> Verdict:
        got = call.value(self.subject)
        if got is UNKNOWN or (isinstance(got, int) and not isinstance(got, bool) and got == UNKNOWN):
            return Verdict("unknown", (f"{self}, and {self.subject} is not known while tracing",))
        return self._decide(self.holds(got), got)

    def holds(self, got: Any) -> bool:
        raise TypeError(f"{type(self).__name__} declares no holds()")

    def boundaries(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """(values just inside, values just outside), for generated tests."""
        return (), ()


@dataclass(frozen=True)
class OneOf(OnValue):
    subject: str
    allowed: tuple[Any, ...]

    def holds(self, got: Any) -> bool:
        return got in self.allowed

    def boundaries(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        sizes = [value for value in self.allowed if isinstance(value, int) and not isinstance(value, bool)]
        near = {value + step for value in sizes for step in (-1, 1)} - set(self.allowed)
        return self.allowed, tuple(sorted(value for value in near if value > 0))

    def __str__(self) -> str:
        names = [_shown(value) for value in self.allowed]
        return f"{self.subject} must be {' or '.join([', '.join(names[:-1]), names[-1]] if names[1:] else names)}"


@dataclass(frozen=True)
class MultipleOf(OnValue):
    subject: str
    factor: int

    def holds(self, got: Any) -> bool:
        return bool(got % self.factor == 0)

    def boundaries(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return (self.factor, 2 * self.factor), (self.factor - 1, self.factor + 1)

    def __str__(self) -> str:
        return f"{self.subject} must be a multiple of {self.factor}"


@dataclass(frozen=True)
class Between(OnValue):
    """low <= subject < high; an open end is None."""

    subject: str
    low: int | None
    high: int | None

    def holds(self, got: Any) -> bool:
        return (self.low is None or got >= self.low) and (self.high is None or got < self.high)

    def boundaries(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        inside = [v for v in (self.low, None if self.high is None else self.high - 1) if v is not None]
        outside = [v for v in (None if self.low is None else self.low - 1, self.high) if v is not None]
        return tuple(inside), tuple(outside)

    def __str__(self) -> str:
        if self.high is None:
            return f"{self.subject} must be at least {self.low}"
        if self.low is None:
            return f"{self.subject} must be below {self.high}"
        return f"{self.subject} must be in [{self.low}, {self.high})"


@dataclass(frozen=True)
class SameSize(Predicate):
    first: str
    second: str

    def judge(self, call: Call) -> Verdict:
        sizes = call.value(self.first), call.value(self.second)
        if UNKNOWN in sizes:
            return Verdict("unknown", (f"{self}, and one is not known while tracing",))
        return self._decide(sizes[0] == sizes[1], f"{sizes[0]} and {sizes[1]}")

    def __str__(self) -> str:
        return f"{self.first} and {self.second} must be the same size"


@dataclass(frozen=True)
class InverseRoot(Predicate):
    """The argument is 1 / sqrt(axis), or None, which stands for it."""

    first: str
    second: str

    def judge(self, call: Call) -> Verdict:
        got, size = call.value(self.first), call.value(self.second)
        if got is None:
            return YES
        if size == UNKNOWN:
            return Verdict("unknown", (f"{self}, and {self.second} is not known while tracing",))
        return self._decide(math.isclose(got, size**-0.5, rel_tol=1e-6), got)  # float32 callers round it

    def __str__(self) -> str:
        return f"{self.first} must be 1 / sqrt({self.second})"


@dataclass(frozen=True)
class Absent(Predicate):
    argument: str

    def judge(self, call: Call) -> Verdict:
        return Verdict("no", (str(self),)) if call.present(self.argument) else YES

    def __str__(self) -> str:
        return f"{self.argument} is not supported"


def is_default(value: Any, default: Any) -> bool:
    """0 is not False, and an array equals nothing."""
    return value is default or (type(value) is type(default) and value == default)


@dataclass(frozen=True)
class LeftOut(Predicate):
    """The argument has its default: the rule for a parameter that the kernel leaves out."""

    argument: str
    default: Any

    def judge(self, call: Call) -> Verdict:
        if self.argument in call.tensors:
            return Verdict("no", (f"{self}, got {call.tensors[self.argument]}",))
        got = call.value(self.argument)
        return self._decide(is_default(got, self.default), got)

    def __str__(self) -> str:
        return f"{self.argument} is not supported: it must be {self.default!r}"


@dataclass(frozen=True)
class Present(Predicate):
    argument: str

    def judge(self, call: Call) -> Verdict:
        return YES if call.present(self.argument) else Verdict("no", (str(self),))

    def given(self) -> str:
        return f"{self.argument} is given"

    def __str__(self) -> str:
        return f"{self.argument} is required"


@dataclass(frozen=True)
class ForwardOnly(Predicate):
    """The kernel has no gradient."""

    def judge(self, call: Call) -> Verdict:
        return Verdict("no", ("forward only: gradients are wanted",)) if call.training else YES

    def __str__(self) -> str:
        return "forward only"


@dataclass(frozen=True)
class Training(Predicate):
    """Gradients are wanted: for limits that the backward pass alone has."""

    def judge(self, call: Call) -> Verdict:
        return YES if call.training else Verdict("no", (f"{self}, and they are not",))

    def __str__(self) -> str:
        return "gradients are wanted"


@dataclass(frozen=True)
class Not(Predicate):
    """The negation, with a reason of its own: the text of the negated rule would read backwards."""

    predicate: Predicate
    reason: str

    def judge(self, call: Call) -> Verdict:
        verdict = self.predicate.judge(call)
        if verdict.answer == "unknown":
            return verdict
        return Verdict("no", (self.reason,)) if verdict else YES

    def children(self) -> tuple[Predicate, ...]:
        return (self.predicate,)

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True)
class When(Predicate):
    """If the condition holds, so must the consequence."""

    condition: Predicate
    then: Predicate

    def judge(self, call: Call) -> Verdict:
        condition = self.condition.judge(call)
        if condition.answer == "no":
            return YES
        consequence = self.then.judge(call)
        if condition.answer == "unknown" and not consequence:
            return Verdict("unknown", consequence.reasons)
        return consequence

    def children(self) -> tuple[Predicate, ...]:
        return (self.condition, self.then)

    def __str__(self) -> str:
        return f"{self.then} (when {self.condition.given()})"


@dataclass(frozen=True)
class AllOf(Predicate):
    """Several that must all hold."""

    parts: tuple[Predicate, ...]

    def judge(self, call: Call) -> Verdict:
        return all_of([part.judge(call) for part in self.parts])

    def children(self) -> tuple[Predicate, ...]:
        return self.parts

    def __str__(self) -> str:
        return " and ".join(str(part) for part in self.parts)


@dataclass(frozen=True)
class AnyOf(Predicate):
    """One of several is enough."""

    choices: tuple[Predicate, ...]

    def judge(self, call: Call) -> Verdict:
        verdicts = [choice.judge(call) for choice in self.choices]
        if any(verdicts):
            return YES
        answer: Answer = "unknown" if any(v.answer == "unknown" for v in verdicts) else "no"
        return Verdict(answer, (" or ".join(reason for v in verdicts for reason in v.reasons),))

    def children(self) -> tuple[Predicate, ...]:
        return self.choices

    def __str__(self) -> str:
        return " or ".join(str(choice) for choice in self.choices)


def _shown(value: object) -> str:
    return value if isinstance(value, str) else repr(value)

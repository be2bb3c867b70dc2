"""Which backend is wanted: context > environment > file > the platform's order.

An explicit name is strict: it runs or raises. A list is its own order of fallback. Without either, the platform's order
holds: the backends that own the tensors' device by name, then those for any device.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from fusionkit import registry, settings
from fusionkit.errors import SettingError, nearest
from fusionkit.ops import OP_NAMES

Names = tuple[str, ...]
Function = TypeVar("Function", bound=Callable[..., Any])
ANY_OP = "*"


@dataclass(frozen=True, eq=False)
class Policy:
    """Wishes of one `use_backend`, or of the settings; `outer` is asked for the ops that this one leaves open.

    Policies with equal wishes are one object (see `_policy`), so that dispatch compares them with `is`.
    """

    wishes: tuple[tuple[str, Names], ...]
    source: str
    outer: Policy | None
    batch_invariant: bool = False

    def wanted(self, op: str) -> tuple[Names, str] | None:
        """(backend names in order, where the wish comes from), or None for the platform's order."""
        wishes = dict(self.wishes)
        names = wishes.get(op) or wishes.get(ANY_OP)
        if names:
            return names, self.source
        return self.outer.wanted(op) if self.outer else None


@lru_cache(maxsize=1024)
def _policy(
    wishes: tuple[tuple[str, Names], ...], source: str, outer: Policy | None, batch_invariant: bool = False
) -> Policy:
    return Policy(wishes, source, outer, batch_invariant)


@lru_cache(maxsize=1)
def of_settings() -> Policy | None:
    """The policy of FUSIONKIT_BACKEND, which holds outside of every `use_backend`.

    Raises:
        SettingError: a setting does not exist, or names no backend or op.
    """
    found = settings.current()
    wish = found.values.get(settings.BACKEND, "").strip()
    if not wish:
        return None
    source = f"{found.sources[settings.BACKEND]}: {settings.BACKEND}"
    return _policy(_normalise(_parse_backend(wish, source), source), source, None)


_context: ContextVar[Policy | None] = ContextVar("fusionkit_policy", default=None)
_entered: ContextVar[tuple[Policy | None, ...]] = ContextVar("fusionkit_entered", default=())  # what to go back to
current = _context.get
_mc2: ContextVar[bool | None] = ContextVar("fusionkit_mc2", default=None)


class use_backend(contextlib.ContextDecorator):
    """Choose the backend for the ops called inside.

    `use_backend("toy")` is strict: the call runs there or raises. `use_backend(["toy", "eager"])` is an order of
    fallback. `use_backend({"flash_attention": "eager"})` speaks for single ops ("*" for all others) and leaves the rest
    to what is outside. Threads and asyncio tasks do not see each other's choice.

    Raises:
        SettingError: no such backend or op; the nearest name is given.
    """

    def __init__(self, backend: str | Iterable[str] | Mapping[str, str | Iterable[str]]) -> None:
        self._wishes = _normalise(backend, "use_backend")

    def __enter__(self) -> None:
        _entered.set((*_entered.get(), current()))
        _context.set(_policy(self._wishes, "use_backend", current(), batch_invariant()))

    def __exit__(self, *exception: object) -> None:
        *outer, before = _entered.get()
        _entered.set(tuple(outer))
        _context.set(before)

    def __call__(self, function: Function) -> Function:
        """Decorate a function.

        Raises:
            TypeError: a coroutine or generator function, whose body runs after the call: use `with` inside it.
        """
        if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
            raise TypeError(
                "use_backend: the function must run when it is called. Write `with use_backend(...)` inside"
            )
        return super().__call__(function)


@contextlib.contextmanager
def use_batch_invariant(enabled: bool = True) -> Iterator[None]:
    """Inside, an op's result for one row has the same bits whatever else the call holds.

    The number of rows does not matter, nor a row's place among them, nor the number of threads. For `paged_attention`
    it does not matter how a row's tokens are divided over calls, as long as keys and values are finite. Gradients are
    not promised. A kernel runs only if it declares the promise (`Kernel.batch_invariant`); `explain` names those that
    do not. A program that is traced inside keeps the promise.
    """
    token = _context.set(_policy((), "use_batch_invariant", current(), enabled))
    try:
        yield
    finally:
        _context.reset(token)


def batch_invariant() -> bool:
    """Whether `use_batch_invariant` holds. A kernel that has two ways asks this at each call."""
    context = current()
    return context is not None and context.batch_invariant


class captured:
    """Enter again the policy, and `use_mc2`, that hold now: for code that runs later, such as a recomputed region."""

    def __init__(self) -> None:
        self._policy, self._mc2 = current(), _mc2.get()

    def __enter__(self) -> None:
        self._tokens = _context.set(self._policy), _mc2.set(self._mc2)

    def __exit__(self, *exception: object) -> None:
        _context.reset(self._tokens[0])
        _mc2.reset(self._tokens[1])


@contextlib.contextmanager
def use_mc2(enabled: bool) -> Iterator[None]:
    """Inside, the parallel layers call the fused ops or not, whatever FUSIONKIT_MC2 says: for comparing the two.

    A backward pass does as its forward pass did, in regions of `fusionkit.nn.recompute` too. All ranks of a group
    choose alike.
    """
    token = _mc2.set(enabled)
    try:
        yield
    finally:
        _mc2.reset(token)


def mc2() -> bool:
    """Whether the parallel layers call the ops that fuse a product with its collective."""
    chosen = _mc2.get()
    return settings.current().mc2 if chosen is None else chosen


def _normalise(
    backend: str | Iterable[str] | Mapping[str, str | Iterable[str]], source: str
) -> tuple[tuple[str, Names], ...]:
    wishes = dict(backend) if isinstance(backend, Mapping) else {ANY_OP: backend}
    named = {op: settings.listed(names, source) for op, names in wishes.items()}
    if not named:
        raise SettingError(f"{source} must name a backend, got {backend!r}")
    for op, names in named.items():
        if op != ANY_OP and op not in OP_NAMES:
            raise SettingError(f"{source}: no op is called {op!r}; {nearest(str(op), OP_NAMES)}")
        for name in names:
            registry.require_name(name, source)
    return tuple(sorted(named.items()))


def _parse_backend(text: str, source: str) -> dict[str, Names]:
    """`toy`, `toy,eager`, `flash_attention=eager;*=toy`."""
    wishes: dict[str, Names] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        op, equals, names = part.partition("=")
        if not equals:
            op, names = ANY_OP, part
        listed = tuple(name.strip() for name in names.split(",") if name.strip())
        if not listed or op.strip() in wishes:
            raise SettingError(f"{source} must be NAME, NAME,NAME or OP=NAME;*=NAME, got {text!r}")
        wishes[op.strip()] = listed
    return wishes

"""Which backend is wanted: context > environment > file > the platform's order.

An explicit name is strict: it runs or raises. A list is its own order of fallback. Without either, the platform's order
holds: the backends that own the tensors' device by name, then those for any device.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import os
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from fusionkit.errors import SettingError

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

    def wanted(self, op: str) -> tuple[Names, str] | None:
        """(backend names in order, where the wish comes from), or None for the platform's order."""
        wishes = dict(self.wishes)
        names = wishes.get(op) or wishes.get(ANY_OP)
        if names:
            return names, self.source
        return self.outer.wanted(op) if self.outer else None


@lru_cache(maxsize=1024)
def _policy(wishes: tuple[tuple[str, Names], ...], source: str, outer: Policy | None) -> Policy:
    return Policy(wishes, source, outer)


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
        _context.set(_policy(self._wishes, "use_backend", current()))

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
    return settings().mc2 if chosen is None else chosen


def _normalise(
    backend: str | Iterable[str] | Mapping[str, str | Iterable[str]], source: str
) -> tuple[tuple[str, Names], ...]:
    from fusionkit import registry  # the registry reads settings from this module
    from fusionkit.ops import OP_NAMES

    wishes = dict(backend) if isinstance(backend, Mapping) else {ANY_OP: backend}
    named = {op: _names(names, source) for op, names in wishes.items()}
    if not named:
        raise SettingError(f"{source} must name a backend, got {backend!r}")
    for op, names in named.items():
        if op != ANY_OP and op not in OP_NAMES:
            raise SettingError(f"{source}: no op is called {op!r}; {nearest(str(op), OP_NAMES)}")
        for name in names:
            registry.require_name(name, source)
    return tuple(sorted(named.items()))


def _names(names: object, source: str) -> Names:
    listed = (names,) if isinstance(names, str) else tuple(names) if isinstance(names, Iterable) else ()
    if not listed or not all(isinstance(name, str) for name in listed):
        raise SettingError(f"{source} must name a backend, or several in order, got {names!r}")
    return listed


def nearest(word: str, words: Iterable[str]) -> str:
    """ "did you mean ...?", or the list of what there is."""
    words = sorted(words)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(words)}"


CORE_SETTINGS: dict[str, Names] = {
    "FUSIONKIT_BACKEND": (),
    "FUSIONKIT_STRICT": ("0", "1"),
    "FUSIONKIT_MC2": ("0", "1"),
    "FUSIONKIT_CONFIG": (),
}


@dataclass(frozen=True)
class Settings:
    """Every FUSIONKIT_* value that is set, checked, with the place it comes from."""

    values: Mapping[str, str]
    sources: Mapping[str, str]
    base: Policy | None
    strict: bool
    mc2: bool


@lru_cache(maxsize=1)
def settings() -> Settings:
    """Read once, at the first dispatch: later changes of the environment do nothing.

    Raises:
        SettingError: an unknown FUSIONKIT_* name or value, with the nearest known one.
    """
    values, sources = _file_settings()
    for name, value in os.environ.items():
        if name.startswith("FUSIONKIT_"):
            values[name], sources[name] = value, "environment"
    known = _known_settings(values, sources)
    for name, value in values.items():
        where = f"{sources[name]}: {name}"
        if name not in known:
            raise SettingError(f"{where} is not a setting; {nearest(name, known)}")
        if known[name] and value not in known[name]:
            raise SettingError(f"{where} must be {' or '.join(known[name])}, got {value!r}")
    base: Policy | None = None
    if wish := values.get("FUSIONKIT_BACKEND", "").strip():
        source = f"{sources['FUSIONKIT_BACKEND']}: FUSIONKIT_BACKEND"
        base = _policy(_normalise(_parse_backend(wish, source), source), source, None)
    strict, mc2 = values.get("FUSIONKIT_STRICT") == "1", values.get("FUSIONKIT_MC2") != "0"
    return Settings(values, sources, base, strict, mc2)


def setting(name: str) -> str | None:
    """The value of one setting of a backend, or None."""
    return settings().values.get(name)


def _known_settings(values: dict[str, str], sources: dict[str, str]) -> dict[str, Names]:
    """The core's and every backend's; a vendor's alias is taken over under the name that it stands for."""
    from fusionkit import registry

    known = dict(CORE_SETTINGS)
    for backend in registry.loaded():
        known.update(backend.settings)
        for alias, name in backend.environment_aliases.items():
            if alias in os.environ and name not in os.environ:
                values[name], sources[name] = os.environ[alias], f"environment ({alias})"
    if not values.keys() <= known.keys():
        # The emulator's package owns its names; it is imported only where a name is left that nobody else knows.
        from fusionkit_emulator import SETTINGS

        for name in SETTINGS.keys() & values.keys():
            if sources[name] != "environment":
                raise SettingError(f"{sources[name]}: {name} must be set in the environment; its library reads no file")
        known.update(SETTINGS)
    return known


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


def _file_settings() -> tuple[dict[str, str], dict[str, str]]:
    path = os.environ.get("FUSIONKIT_CONFIG")
    if not path:
        return {}, {}
    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingError(f"FUSIONKIT_CONFIG must name a TOML file, got {path!r}: {error}") from error
    if "config" in content:
        raise SettingError(f"{path}: config cannot be set in the file itself")
    flat = _flatten(content)
    return flat, dict.fromkeys(flat, path)


def _flatten(content: dict[str, Any]) -> dict[str, str]:
    """`strict = true` is FUSIONKIT_STRICT=1; `[cpu] isa = "avx2"` is FUSIONKIT_CPU_ISA; backend may be a table."""
    flat: dict[str, str] = {}
    for key, value in content.items():
        if key == "backend":
            table = value if isinstance(value, dict) else {ANY_OP: value}
            wishes = {op: _names(names, "backend") for op, names in table.items()}
            flat["FUSIONKIT_BACKEND"] = ";".join(f"{op}={','.join(names)}" for op, names in wishes.items())
        elif isinstance(value, dict):
            flat |= {f"FUSIONKIT_{key}_{name}".upper(): _text(inner) for name, inner in value.items()}
        else:
            flat[f"FUSIONKIT_{key}".upper()] = _text(value)
    return flat


def _text(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)

"""The targets: the instruction sets that the kernels are compiled for, the best first. This is the only list of them:
native/build.py compiles by it and writes the C++ side, `targets.h`; docs/adding_a_target.md tells how to add a row."""

from __future__ import annotations

from typing import NamedTuple


class Target(NamedTuple):
    """features: what the processor must have besides those of `like`, by the names that GCC's -m flags and its
        __builtin_cpu_supports share; none: every processor.
    like: the target whose features it has too, and whose kernels it takes where it compiles none of its own.
    kernels: the files of csrc/kernels that it compiles, without .cc; None: all.
    tuning: flags that need no feature.
    permission: a function of csrc/tiles.h, `bool f()`, that has to agree besides.
    has_model: it also runs where only the features of `like` are, when asked for as <name>_model: for tests.
    """

    name: str
    features: str = ""
    like: str | None = None
    kernels: tuple[str, ...] | None = None
    tuning: str = ""
    permission: str | None = None
    has_model: bool = False
    machine: str = "x86_64"


TARGETS = (
    Target(
        "amx",
        "amx-tile amx-bf16 amx-int8",
        like="avx512",
        kernels=("flash_attention", "flash_attention_grad", "peak"),
        permission="tiles_permitted",
        has_model=True,
    ),
    Target(
        "avx512",
        "avx512f avx512bw avx512vl avx512dq avx512bf16",
        like="avx2",
        tuning="-mprefer-vector-width=512",
    ),
    Target("avx2", "avx2 fma f16c"),
    Target("portable", machine="any"),
)
NAMES = tuple(target.name for target in TARGETS)


def named(name: str) -> Target:
    return TARGETS[NAMES.index(name)]


def of_machine(machine: str) -> list[Target]:
    """`machine` as platform.machine() says it."""
    return [target for target in TARGETS if target.machine in (machine, "any")]


def features(target: Target) -> list[str]:
    """Its own and those of the targets that it is like."""
    inherited = features(named(target.like)) if target.like else []
    return [*inherited, *target.features.split()]


def flags(target: Target) -> list[str]:
    return [*(f"-m{feature}" for feature in features(target)), *target.tuning.split()]


def needed(target: Target) -> list[Target]:
    """The target and those that its kernels come from."""
    return [target] if target.kernels is None or target.like is None else [target, *needed(named(target.like))]


def has(target: Target, listed: set[str]) -> bool:
    """Whether its features are all `listed`, by /proc/cpuinfo's names: avx512_bf16 is avx512bf16 here."""
    plain = {name.replace("_", "").replace("-", "") for name in listed}
    return {name.replace("-", "") for name in features(target)} <= plain


def best(machine: str, listed: set[str]) -> Target:
    """The first target that the processor runs."""
    return next(each for each in of_machine(machine) if has(each, listed))


def testable(machine: str, listed: set[str]) -> list[Target]:
    """The targets that the processor runs, or whose model it does."""
    return [
        each
        for each in of_machine(machine)
        if has(each, listed) or (each.has_model and each.like and has(named(each.like), listed))
    ]

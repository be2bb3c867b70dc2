"""What layouts are tried with beside their axes, so that each two choices meet in some run."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from examples.llama2_13b.model.llama import GRANULARITIES
from examples.llama2_13b.parallel.degrees import Degrees

Choice = dict[str, bool | int | str]
Pair = tuple[tuple[str, bool | int | str], tuple[str, bool | int | str]]


def name_of(degrees: Degrees) -> str:
    return "-".join(f"{axis}{degree}" for axis, degree in dataclasses.asdict(degrees).items() if degree > 1)


def described(choice: Choice) -> str:
    """Only what is not as without flags."""
    flags = {"recompute": f"recompute {choice.get('granularity')}", "tied": "tied", "grouped": "grouped heads"}
    words = [word for name, word in flags.items() if choice[name]]
    words += [] if choice.get("sequence", True) else ["no sequence parallelism"]
    words += [] if choice.get("mc2", True) else ["no MC2"]
    words += ["interleaved"] if choice.get("chunks") == 2 else []
    words += [f"stage {choice['stage']}"] if "stage" in choice else []
    return ", ".join(words)


def title(degrees: Degrees, choice: Choice) -> str:
    return f"{name_of(degrees)}: {described(choice)}".removesuffix(": ")


def choices(degrees: Degrees) -> Iterator[Choice]:
    """All that a layout allows, of models with 8 heads and at least 8 layers. grouped: 4 heads of keys and values."""
    either = (False, True)
    divides = degrees.tensor > 1
    values = {
        "recompute": either,
        "tied": either,
        "grouped": either if degrees.tensor <= 4 else (False,),
        **({"sequence": either, "mc2": either} if divides else {}),
        **({"chunks": (1, 2)} if 1 < degrees.pipeline <= 4 else {}),
        **({"stage": (1, 2, 3)} if degrees.sharding > 1 else {}),
    }
    return (dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values()))


def pairs(degrees: Degrees, choice: Choice) -> set[Pair]:
    """What meets in a run: two choices, two axes, or a choice and an axis."""
    axes = [(axis, True) for axis, degree in dataclasses.asdict(degrees).items() if degree > 1]
    return set(itertools.combinations([*axes, *choice.items()], 2))


def all_pairs(layouts: Sequence[Degrees]) -> set[Pair]:
    return {pair for degrees in layouts for choice in choices(degrees) for pair in pairs(degrees, choice)}


def covering(layouts: Sequence[Degrees]) -> list[tuple[Degrees, Choice]]:
    """Every layout once, and then some again until all pairs have met. Each time those come that have met least.

    What is computed again takes turns.
    """
    met: Counter[Pair] = Counter()
    runs = []

    def add(candidates: Iterable[Degrees]) -> None:
        every = ((degrees, choice) for degrees in candidates for choice in choices(degrees))
        runs.append(max(every, key=lambda run: sum(0.125 ** met[pair] for pair in pairs(*run))))
        met.update(pairs(*runs[-1]))

    for degrees in layouts:
        add([degrees])
    wanted = all_pairs(layouts)
    while not wanted <= met.keys():
        add(layouts)
    granularities = itertools.cycle(GRANULARITIES)
    again = [{"granularity": next(granularities)} if choice["recompute"] else {} for _, choice in runs]
    return [(degrees, choice | more) for (degrees, choice), more in zip(runs, again, strict=True)]

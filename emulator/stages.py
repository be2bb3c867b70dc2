"""Whether the stages of a pipeline compute equally many layers, told from what their forward passes call.

A layer more on all ranks of a stage breaks no collective, so only the work tells. Ranks are compared by kernel and line
of code. Embedding, last norm, head and loss are on one stage alone and few beside the layers: a rank has more layers
than another if it calls more of what makes up most of its own work. Copies of a whole model may see different numbers
of batches, such as of an evaluation. Then nearly all lines are called more often; or those of the ends are a few times,
once a pass, and those of the layers many times.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

MOST = 0.5  # of a rank's kernels
ALIKE = 0.95  # of a rank's lines are those of all where each has the whole model: an end has more than a twentieth
PASSES = 0.9  # of these are called more often where a copy has more passes
APART = 16  # times as many more calls: of a line that each layer makes, once a pass; a layer seldom calls one so often
SHOWN = 3  # lines
Counts = Mapping[str, int]  # "kernel of line" -> calls in forward passes


def read(path: Path) -> Counts:
    """A process's file, emulator/csrc/rehearsal/forward.cc; empty where it has none."""
    found: dict[str, int] = defaultdict(int)
    if path.exists():
        for line in path.read_text(errors="replace").splitlines():
            count, kernel, place = line.split("\t", 2)
            found[f"{kernel} of {place or 'no Python code'}"] += int(count)
    return found


def unequal(ranks: Sequence[tuple[int, Counts]]) -> Iterator[str]:
    """What is found of ranks: nothing where all have equally many layers.

    Args:
        ranks: number of each, and its calls.
    """
    shared = set.intersection(*(set(counts) for _, counts in ranks)) if ranks else set()
    if not shared:
        return
    are_copies = all(len(shared) >= ALIKE * len(counts) for _, counts in ranks)
    own = [(number, {key: counts[key] for key in shared}) for number, counts in ranks]
    least_rank, least = min(own, key=lambda one: sum(one[1].values()))
    of_ratio: dict[Fraction, list[int]] = defaultdict(list)
    lines: set[str] = set()
    for number, counts in own:
        if are_copies and _has_more_passes(counts, least):
            continue
        ratio, more = _more(counts, least)
        of_ratio[ratio].append(number)
        lines |= more
    if len(of_ratio) > 1:
        yield "FOUND: the ranks' forward passes have unequal numbers of layers:"
        for ratio, numbers in sorted(of_ratio.items()):
            told = f"{ratio.numerator} for each {ratio.denominator} of rank {least_rank}" if ratio != 1 else "fewest"
            yield f"  rank {', '.join(map(str, numbers))}: {told}"
        yield f"they differ in {len(lines)} kernels by line, most in:"
        by_calls = sorted(lines, key=lambda key: (-sum(counts[key] for _, counts in own), key))
        for key in by_calls[:SHOWN]:
            calls = ", ".join(f"{counts[key]} on rank {number}" for number, counts in own)
            yield f"  {key}: {calls}"
        yield "Mend the stage that has too many or too few, or add --uneven if the stages are meant to differ"


def _has_more_passes(counts: Counts, least: Counts) -> bool:
    """Of a copy. A line that each layer makes is called more often for each layer, one of the ends once a pass."""
    added = [count - least[key] for key, count in counts.items() if count > least[key]]
    return len(added) >= PASSES * len(counts) or (bool(added) and max(added) >= APART * min(added))


def _more(counts: Counts, least: Counts) -> tuple[Fraction, set[str]]:
    """(layers for each layer of the least, what is called more often): 1 and nothing where that is the ends' work."""
    more = {key for key, count in counts.items() if count > least[key]}
    calls = sum(counts[key] for key in more)
    if calls <= MOST * sum(counts.values()):
        return Fraction(1), set()
    of_ratio: dict[Fraction, int] = defaultdict(int)
    for key in more:
        of_ratio[Fraction(counts[key], least[key])] += counts[key]
    ratio = max(of_ratio, key=of_ratio.__getitem__)
    return ratio, {key for key in more if Fraction(counts[key], least[key]) == ratio}

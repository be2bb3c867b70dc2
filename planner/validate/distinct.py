"""Which measured rows count: each once, and of those that are judged only those that nothing was fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fusionkit_planner.validate.rows import Row


@dataclass(frozen=True)
class Distinct:
    """What is fitted and what is judged.

    Args:
        fit, judge: rows.
        repeated: that stood in the files of --fit or of --judge before, and do not count again.
        known: judged rows that were fitted on, too.
    """

    fit: list[Row]
    judge: list[Row]
    repeated: int
    known: int

    @property
    def judges_the_fit(self) -> bool:
        """No judged row is new, so the errors are those of the fit."""
        return self.known == len(self.judge)


def distinct(fit: Sequence[Row], judge: Sequence[Row]) -> Distinct:
    """Rows are the same if all but their place is. Known ones are judged only where there are no others."""
    fitted, judged = _once(fit), _once(judge)
    repeated = len(fit) + len(judge) - len(fitted) - len(judged)
    new = {row: place for row, place in judged.items() if row not in fitted}
    kept = new or judged
    return Distinct(_placed(fitted), _placed(kept), repeated, len(judged) - len(new))


def _once(rows: Sequence[Row]) -> dict[Row, str]:
    """Each row without its place -> its first place."""
    found: dict[Row, str] = {}
    for row in rows:
        found.setdefault(replace(row, name=""), row.name)
    return found


def _placed(rows: dict[Row, str]) -> list[Row]:
    return [replace(row, name=place) for row, place in rows.items()]

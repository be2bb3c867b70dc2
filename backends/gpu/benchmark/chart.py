"""Shares of the card's rate as bars: one chart a piece. Needs matplotlib, which a card's machine may lack."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw(pieces: dict[str, Any], folder: Path) -> list[Path]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    made = []
    for name, piece in pieces.items():
        rows = [row for row in piece["rows"] if "call" in row and row["share"] is not None]
        if not rows:
            continue
        figure, axes = pyplot.subplots(figsize=(10, 1 + 0.18 * len(rows)))
        labels = [f"{row['call']}, {row['direction']}: {row['contestant']}" for row in rows]
        axes.barh(labels, [100 * row["share"] for row in rows])
        axes.set_xlabel(f"% of the {rows[0]['ceiling']} of the same rounds; {piece['machine']['card']}")
        axes.tick_params(labelsize=6)
        axes.invert_yaxis()
        path = folder / f"{name}.png"
        figure.savefig(path, bbox_inches="tight", dpi=120)
        pyplot.close(figure)
        made.append(path)
    return made

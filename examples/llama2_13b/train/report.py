"""`report.html`: a run on one page, which needs no other file and no network. `report.json`: its figures alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from examples.llama2_13b.io import atomic
from examples.llama2_13b.train import svg
from examples.llama2_13b.train.memory import Memory

STYLE = """
body { font: 15px/1.5 sans-serif; margin: 2em auto; max-width: 1180px; padding: 0 1em; color: #222 }
figure { display: inline-block; margin: 0 1em 1em 0 } svg { font: 12px sans-serif; max-width: 100% }
table { border-collapse: collapse; margin-bottom: 1em } td, th { padding: .15em .8em .15em 0; text-align: left }
th { border-bottom: 1px solid #999 } td { border-bottom: 1px solid #eee; overflow-wrap: anywhere }
"""


@dataclass(frozen=True)
class Report:
    """What the page shows.

    Args:
        title: of the run.
        ending: how it ended, in words.
        log: the lines of `log.jsonl`.
        layout: processes along each axis.
        settings: every flag.
        predicted: the memory of each rank; may be empty.
        measured: its peak in bytes, of each rank; 0 where no step was measured.
        measured_of: what the peak is of.
        timeline: what a trace of some steps says, in words.
    """

    title: str
    ending: str
    log: Sequence[Mapping[str, Any]]
    layout: Mapping[str, int]
    settings: Mapping[str, Any]
    predicted: Sequence[Memory]
    measured: Sequence[float]
    measured_of: str
    timeline: Sequence[str] = ()

    def write(self, path: Path) -> None:
        """The page, and beside it what a program reads."""
        atomic.write_file(path.with_suffix(".json"), (json.dumps(self.figures(), indent=1) + "\n").encode())
        atomic.write_file(path, self.page().encode(errors="replace"))

    def figures(self) -> dict[str, Any]:
        """Memory in bytes, of each rank in their order."""
        return {
            "ending": self.ending,
            "layout": dict(self.layout),
            "memory": {
                "predicted": [asdict(one) for one in self.predicted],
                "measured": list(self.measured),
                "measured_of": self.measured_of,
            },
        }

    def page(self) -> str:
        title = escape(self.title)
        sections = [
            f"<h1>{title}</h1><p>{escape(self.ending)}</p>",
            *self._charts(),
            "<h2>Memory</h2>",
            _table(("rank", "stage", "predicted", "measured", "worst moment", *MEMORY_PARTS), self._memory()),
            f"<p>In GB. Measured is the peak {escape(self.measured_of)}.</p>",
            *(["<h2>Timeline</h2>", *(f"<p>{escape(line)}</p>" for line in self.timeline)] if self.timeline else []),
            "<h2>Layout</h2>",
            _table(("axis", "processes"), self.layout.items()),
            "<h2>Settings</h2>",
            _table(("flag", "value"), ((f"--{name}", value) for name, value in self.settings.items())),
        ]
        head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
        return (
            f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(sections) + "\n</body></html>\n"
        )

    def _charts(self) -> list[str]:
        def over_steps(name: str, factor: float = 1.0) -> list[tuple[float, float]]:
            return [(line["step"], line[name] * factor) for line in self.log if name in line]

        losses = {"training": over_steps("loss"), "evaluation": over_steps("eval_loss")}
        ranks = [str(rank) for rank in range(len(self.measured))]
        memory = {
            "predicted": [one.peak / 1e9 for one in self.predicted],
            "measured": [size / 1e9 for size in self.measured] if any(self.measured) else [],
        }
        return [
            svg.lines("loss per token (nats)", {name: points for name, points in losses.items() if points}),
            svg.lines("tokens/s/device", {"tokens/s/device": over_steps("tokens_per_second_per_device")}),
            svg.lines("MFU (%)", {"MFU": over_steps("mfu", 100)}),
            svg.bars("peak memory by rank (GB)", ranks, {name: sizes for name, sizes in memory.items() if sizes}),
        ]

    def _memory(self) -> Iterable[tuple[object, ...]]:
        measured = [_gb(size) if size else "not measured" for size in self.measured]
        if not self.predicted:
            yield from ((rank, "", "", size, "") for rank, size in enumerate(measured))
        for one, size in zip(self.predicted, measured, strict=False):
            parts = (_gb(getattr(one, part)) for part in MEMORY_PARTS)
            yield one.rank, one.stage, _gb(one.peak), size, one.moment, *parts


MEMORY_PARTS = ("parameters", "gradients", "optimizer", "activations")


def _gb(size: float) -> str:
    return f"{size / 1e9:.3f}"


def _table(header: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

"""`loss.png`: the losses of a log over its steps."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from examples.llama2_13b.io import atomic

TRAIN, EVALUATION = "#2f6db5", "#d9622b"


def draw(log: list[dict[str, Any]], path: Path, title: str) -> None:
    """Every step's loss faint, their running mean over 5% of the run strong, evaluations as points."""
    import matplotlib  # here, for training works without it
    from matplotlib.figure import Figure

    plain = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "text.usetex": False}
    with matplotlib.rc_context(plain):
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.add_subplot(xlabel="step", ylabel="loss per token (nats)")
        axes.set_title(title.encode(errors="replace").decode(), parse_math=False)  # a folder's name: any $, any bytes
        steps, losses = [line["step"] for line in log], [line["loss"] for line in log]
        axes.plot(steps, losses, color=TRAIN, alpha=0.25, linewidth=1)
        axes.plot(steps, _running_mean(losses), color=TRAIN, linewidth=2, label=f"training, now {losses[-1]:.3f}")
        evaluated = [(line["step"], line["eval_loss"]) for line in log if "eval_loss" in line]
        if evaluated:
            label = f"evaluation, now {evaluated[-1][1]:.3f}"
            axes.plot(*zip(*evaluated, strict=True), "o-", color=EVALUATION, linewidth=1, markersize=5, label=label)
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", alpha=0.3)
        axes.legend(frameon=False)
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=150)
        atomic.write_file(path, picture.getvalue())


def _running_mean(values: list[float]) -> list[float]:
    reach = len(values) // 40
    windows = [values[max(0, middle - reach) : middle + reach + 1] for middle in range(len(values))]
    return [sum(window) / len(window) for window in windows]

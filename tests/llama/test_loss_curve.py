"""loss.png: what is drawn of a log. That it is a picture is tested where runs end."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from examples.llama2_13b.train import loss_curve


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """The axes that a log is drawn on."""

    def draw(log):
        figures = []
        monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **options: figures.append(figure))
        loss_curve.draw(log, tmp_path / "loss.png", "a run")
        ((axes,),) = [figure.axes for figure in figures]
        return axes

    return draw


def test_losses_their_mean_and_evaluations_stand_at_their_steps(drawn):
    """A mean is over 5% of 80 steps: two before and two after, fewer at the ends."""
    steps, values = list(range(11, 91)), np.random.default_rng(0).uniform(1, 4, 80)
    log = [{"step": step, "loss": value} for step, value in zip(steps, values, strict=True)]
    log[39]["eval_loss"], log[79]["eval_loss"] = 2.5, 1.25
    axes = drawn(log)
    every, mean, evaluated = axes.lines
    np.testing.assert_array_equal(every.get_xydata(), np.transpose([steps, values]))
    np.testing.assert_array_equal(mean.get_xdata(), steps)
    np.testing.assert_allclose(mean.get_ydata()[2:-2], np.convolve(values, np.full(5, 0.2), "valid"))
    np.testing.assert_allclose(mean.get_ydata()[[0, 1, -1]], [values[:3].mean(), values[:4].mean(), values[-3:].mean()])
    np.testing.assert_array_equal(evaluated.get_xydata(), [(50, 2.5), (90, 1.25)])
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    assert shown == [f"training, now {values[-1]:.3f}", "evaluation, now 1.250"]
    assert (axes.get_ylim()[0], axes.get_title(), axes.get_xlabel()) == (0, "a run", "step")


def test_a_run_without_evaluations_has_two_lines(drawn):
    axes = drawn([{"step": 1, "loss": 2.0}])
    assert len(axes.lines) == 2 and [text.get_text() for text in axes.get_legend().get_texts()] == [
        "training, now 2.000"
    ]

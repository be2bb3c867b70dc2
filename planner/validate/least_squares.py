"""Few numbers fitted to many rows: least squares of logarithms, with a prior for each number, and outliers held back.

    minimise  sum_i huber((ln predicted_i - ln measured_i) / NOISE) + sum_j ((x_j - begin_j) / spread_j)^2

huber(r) is r^2 up to OUTLIER, and grows by a straight line beyond, so that a wild row pulls no harder than a bad one.
Solved by Gauss and Newton's method with Levenberg's damping.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NOISE = 0.03  # of a row's logarithm: what a model of few numbers cannot know
OUTLIER = 2.0  # in units of NOISE
STEP = 1e-3  # of a logarithm, for differences
LARGEST_MOVE = 0.7
ROUNDS, TRIES = 25, 8
ENOUGH = 1e-3  # of the objective


@dataclass(frozen=True)
class Problem:
    """What is fitted.

    Args:
        begins, spreads: of each number.
        residuals: logarithms of predicted over measured, of all rows.
        slopes: of the residuals by each number, [rows, numbers].
    """

    begins: Array
    spreads: Array
    residuals: Callable[[Array], Array]
    slopes: Callable[[Array, Array], Array]


def solve(problem: Problem) -> Array:
    """The numbers."""
    x: Array = problem.begins.copy()
    damping = 1e-2
    residuals = problem.residuals(x)
    objective = _objective(problem, x, residuals)
    for _ in range(ROUNDS):
        slopes = problem.slopes(x, residuals)
        weights = np.minimum(1.0, OUTLIER * NOISE / np.maximum(np.abs(residuals), 1e-12)) / NOISE**2
        prior = 1 / problem.spreads**2
        curvature = slopes.T @ (weights[:, None] * slopes) + np.diag(prior)
        gradient = slopes.T @ (weights * residuals) + prior * (x - problem.begins)
        for _ in range(TRIES):
            move = -np.linalg.solve(curvature + damping * np.diag(np.diag(curvature)), gradient)
            tried = x + np.clip(move, -LARGEST_MOVE, LARGEST_MOVE)
            found = problem.residuals(tried)
            reached = _objective(problem, tried, found)
            if reached < objective:
                break
            damping *= 4
        else:
            break
        gained, x, residuals, objective = objective - reached, tried, found, reached
        damping = max(damping / 6, 1e-6)
        if gained < ENOUGH * objective:
            break
    return x


def _objective(problem: Problem, x: Array, residuals: Array) -> float:
    size = np.abs(residuals) / NOISE
    huber = np.where(size < OUTLIER, size**2, 2 * OUTLIER * size - OUTLIER**2)
    return float(huber.sum() + (((x - problem.begins) / problem.spreads) ** 2).sum())

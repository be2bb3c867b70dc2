"""Few numbers fitted to many rows: least squares of logarithms, with a prior for each number, and outliers held back.

    minimise  sum_i huber((ln predicted_i - ln measured_i) / noise) + sum_j ((x_j - begin_j) / spread_j)^2

huber(r) is r^2 up to OUTLIER, and grows by a straight line beyond, so that a wild row pulls no harder than a bad one.
Where only disturbances make a wild row, it grows by a logarithm on their side, and the pull falls with the distance.
Solved by Gauss and Newton's method with Levenberg's damping: first with the largest noise, then with what that leaves,
until it settles. Rows of one set share a noise: those of a cluster scatter more than those of a node.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Of a row's logarithm: what a model of few numbers cannot know. The least is more than repeats differ by, 0.05%.
LEAST_NOISE, MOST_NOISE = 0.001, 0.01
OUTLIER = 2.0  # in units of the noise
STEP = 1e-3  # of a logarithm, for differences
LARGEST_MOVE = 0.7
ROUNDS, TRIES = 25, 8
ENOUGH = 1e-3  # of the objective
NARROWINGS = 4  # of the noise, by what a fit leaves
SETTLED = 0.9


@dataclass(frozen=True)
class Problem:
    """What is fitted.

    Args:
        begins, spreads: of each number.
        residuals: logarithms of predicted over measured, of all rows.
        slopes: of the residuals by each number, [rows, numbers].
        sets: a number for each row: those with the same scatter alike, so they share a noise. None: all of them.
        is_disturbed: what is measured may be any amount too large, and is never too small: a neighbour's traffic or a
            hot device slows a step down, and nothing makes it faster than its machine.
    """

    begins: Array
    spreads: Array
    residuals: Callable[[Array], Array]
    slopes: Callable[[Array, Array], Array]
    sets: NDArray[np.int64] | None = None
    is_disturbed: bool = False


@dataclass(frozen=True)
class Solution:
    """The numbers, and of each row the noise, as a standard deviation."""

    numbers: Array
    noise: Array


def solve(problem: Problem) -> Solution:
    """Until the noise settles."""
    noise = np.full(len(problem.residuals(problem.begins)), MOST_NOISE)
    x = _solve(problem, problem.begins, noise)
    for _ in range(NARROWINGS):
        less = _left(problem, x, noise)
        if (less > SETTLED * noise).all():
            break
        x, noise = _solve(problem, x, less), less
    return Solution(x, noise)


def noise_of(residuals: Array, spent: float = 0.0) -> float:
    """As a standard deviation, from the median, which outliers do not move.

    Args:
        spent: how many rows' worth of what was measured the numbers took up. So many residuals are smaller than noise.
    """
    left = max(1.0, len(residuals) - spent) / len(residuals)
    return float(np.clip(1.5 * np.median(np.abs(residuals)) / np.sqrt(left), LEAST_NOISE, MOST_NOISE))


def _left(problem: Problem, x: Array, noise: Array) -> Array:
    """The noise that a fit leaves in each row's set. A set has spent what its rows add to the trace of the matrix that
    takes measured rows to fitted ones."""
    residuals = problem.residuals(x)
    slopes = problem.slopes(x, residuals)
    weighted = _weights(problem, residuals, noise)[:, None] * slopes
    spent = (weighted * np.linalg.solve(slopes.T @ weighted + np.diag(1 / problem.spreads**2), slopes.T).T).sum(axis=1)
    found = noise.copy()
    sets = np.zeros(len(noise)) if problem.sets is None else problem.sets
    for number in np.unique(sets):
        own = sets == number
        found[own] = noise_of(residuals[own], float(spent[own].sum()))
    return found


def _solve(problem: Problem, begins: Array, noise: Array) -> Array:
    x: Array = begins.copy()
    damping = 1e-2
    residuals = problem.residuals(x)
    objective = _objective(problem, x, residuals, noise)
    for _ in range(ROUNDS):
        slopes = problem.slopes(x, residuals)
        weights = _weights(problem, residuals, noise)
        prior = 1 / problem.spreads**2
        curvature = slopes.T @ (weights[:, None] * slopes) + np.diag(prior)
        gradient = slopes.T @ (weights * residuals) + prior * (x - problem.begins)
        for _ in range(TRIES):
            move = -np.linalg.solve(curvature + damping * np.diag(np.diag(curvature)), gradient)
            tried = x + np.clip(move, -LARGEST_MOVE, LARGEST_MOVE)
            found = problem.residuals(tried)
            reached = _objective(problem, tried, found, noise)
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


def _weights(problem: Problem, residuals: Array, noise: Array) -> Array:
    """How hard each row pulls, by its residual."""
    pull = np.minimum(1.0, OUTLIER * noise / np.maximum(np.abs(residuals), 1e-12))
    return np.asarray(np.where(_beyond(problem, residuals), pull**2, pull) / noise**2)


def _beyond(problem: Problem, residuals: Array) -> NDArray[np.bool_]:
    """Rows that were measured larger than predicted, where a disturbance may be why."""
    return np.asarray(problem.is_disturbed & (residuals < 0))


def _objective(problem: Problem, x: Array, residuals: Array, noise: Array) -> float:
    size = np.abs(residuals) / noise
    far = np.maximum(size, OUTLIER)
    falling = OUTLIER**2 * (1 + 2 * np.log(far / OUTLIER))
    tail = np.where(_beyond(problem, residuals), falling, 2 * OUTLIER * far - OUTLIER**2)
    return float(np.where(size < OUTLIER, size**2, tail).sum() + (((x - problem.begins) / problem.spreads) ** 2).sum())

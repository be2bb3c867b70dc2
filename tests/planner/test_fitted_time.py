"""What the time model of `fusionkit plan validate` is fitted by: its slopes, its kinds, and its noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fusionkit_planner import training_time
from fusionkit_planner.layout import Layout
from fusionkit_planner.validate import fitted_time, kinds, least_squares, rows
from fusionkit_planner.validate.machine import FittedMachine, parameters
from fusionkit_planner.validate.systems import A100, MEGATRON_CORE, MEGATRON_GPT_NODE

SIZES = rows._gpt(2048, 16, 12, "GPT 2048 x 12")
LAYOUTS = [
    Layout(micro_batches=4, data=2, stage=0),
    Layout(tensor=2, pipeline=2, micro_batches=4, stage=0),
    Layout(tensor=2, data=2, pipeline=4, micro_batches=8, stage=0),
    Layout(tensor=8, data=4, micro_batches=2, stage=0, recompute="full"),
    Layout(tensor=2, context=2, sequence_parallel=True, sharding=2, micro_batches=2),
]


def row(layout, system=MEGATRON_GPT_NODE, seconds=1.0, model=SIZES):
    return rows.Row("row", A100, system, model, layout, 1024, seconds)


def begins():
    return {one.name: one.begins for one in parameters(A100)}


def test_slopes_are_those_of_the_whole_step():
    """Of each rate and each factor: the same as a step that is computed again from the start."""
    measured = [row(each, MEGATRON_CORE if each.context > 1 else MEGATRON_GPT_NODE) for each in LAYOUTS]
    of_rows = kinds.Kinds(measured)
    known = tuple({kind: 0.01 * place for place, kind in enumerate(dict.fromkeys(each))} for each in of_rows.of)
    found = fitted_time._slopes(of_rows, begins(), known)

    def logarithm(values, factors):
        return np.log(fitted_time.Fitted(values, factors).seconds(measured))

    at, column, step = logarithm(begins(), known), 0, 1e-5
    for name, value in begins().items():
        told = (logarithm({**begins(), name: value * np.exp(step)}, known) - at) / step
        assert found[:, column] == pytest.approx(told, abs=2e-3), name
        column += 1
    for place, each in enumerate(known):
        for kind in each:
            moved = [dict(one) for one in known]
            moved[place][kind] += step
            told = (logarithm(begins(), tuple(moved)) - at) / step
            assert found[:, column] == pytest.approx(told, abs=2e-3), (place, kind)
            column += 1
    assert column == found.shape[1]


def test_rows_of_a_kind_share_its_factor_and_others_keep_theirs():
    """One data rank sends nothing; the same gradients to as many ranks are one kind, whatever the micro-batches."""
    exchanges = [
        kinds.exchange(row(Layout(data=4, micro_batches=count, micro_batch=size, stage=0)))
        for count, size in ((2, 1), (8, 4))
    ]
    assert exchanges[0] == exchanges[1] != kinds.exchange(row(Layout(data=2, micro_batches=2, stage=0)))
    within, beyond = (kinds.message(row(Layout(pipeline=2, data=copies, stage=0))) for copies in (4, 8))
    assert within[0] == beyond[0] and (within[1], beyond[1]) == (True, False)
    halved = kinds.message(row(Layout(pipeline=2, tensor=2, stage=0), replace(MEGATRON_GPT_NODE, divides_sends=True)))
    assert halved[0] == kinds.message(row(Layout(pipeline=2, tensor=2, stage=0)))[0] / 2
    one = kinds.Kinds([row(LAYOUTS[0]), row(LAYOUTS[1])])
    factors = one.factors([{one.of[0][1]: np.log(1.5)}, {}, {}, {}, {}, {}])
    assert factors[0] == pytest.approx(1) and factors[1] == pytest.approx([1.5, 1.5, 1, 1, 1, 1, 1, 1, 1])


def test_a_message_has_a_rate_of_its_own():
    """Twice the rate of messages shortens a pipeline's step by its messages, and no other."""
    twice = {**begins(), "send_rate": 2 * begins()["send_rate"]}
    alone, staged = row(Layout(tensor=2, data=2, stage=0)), row(LAYOUTS[1])
    before, after = (fitted_time.Fitted(values, ({},) * 6).seconds([alone, staged]) for values in (begins(), twice))
    assert before[0] == after[0] and before[1] > after[1]
    machine = FittedMachine(A100, begins())
    sent = machine.send_seconds(1e9, 1) - machine.send_seconds(0, 1)
    assert sent == pytest.approx(1e9 / begins()["send_rate"])


def test_a_host_that_launches_collectives_slows_a_small_layer():
    """Two collectives forward and two backward join the launches of a layer that waits for its host."""
    slow = {**begins(), "launch": 1e-3, "collective_launch": 1e-2, "latency": 1e-9}
    machine, layout = FittedMachine(A100, slow), Layout(tensor=8, stage=0)
    ahead, back = training_time.pieces(SIZES, layout, 128, machine, MEGATRON_GPT_NODE).layer
    kernels = MEGATRON_GPT_NODE.kernels
    assert ahead.seconds == pytest.approx(kernels * 1e-3 + 2 * 1e-2, rel=1e-3)
    assert back.seconds == pytest.approx(1.6 * kernels * 1e-3 + 2 * 1e-2, rel=1e-3)


def test_noise_counts_only_what_the_numbers_left():
    residuals = np.array([-0.01, 0.01, 0.012, -0.012])
    assert least_squares.noise_of(residuals / 4) == pytest.approx(1.5 * 0.011 / 4)
    assert least_squares.noise_of(residuals / 2, spent=3.0) == least_squares.MOST_NOISE  # one row is left of four
    assert least_squares.noise_of(0 * residuals) == least_squares.LEAST_NOISE


def test_rows_that_scatter_do_not_blur_those_that_do_not():
    """Two sets on one line: where each has a noise of its own, the quiet one decides where the line is."""
    z = np.linspace(0, 1, 40)
    is_loud = (np.arange(40) % 3 == 0).astype(int)
    measured = 2 + 3 * z - 0.006 * is_loud * (1 + np.cos(7 * np.arange(40)))
    slopes = np.stack([np.ones_like(z), z], axis=1)

    def miss(sets):
        problem = least_squares.Problem(
            np.zeros(2), np.full(2, 10.0), lambda x: slopes @ x - measured, lambda x, at: slopes, sets
        )
        return np.abs(least_squares.solve(problem).numbers - [2, 3]).max()

    assert miss(is_loud) < 1e-4 < 1e-3 < miss(None)

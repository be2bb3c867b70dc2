"""The definitions against values computed by hand, and the bootstrap against every resample there is."""

from __future__ import annotations

import itertools
import statistics as standard

import pytest
from fusionkit_bench.mc2 import statistics
from fusionkit_bench.mc2.measurement import FUSED, PRODUCT, Measurement

from tests.bench_mc2.made_up import CASE, measured


def test_figures_by_hand():
    """Tg 400 ms, Tc 240, Ts 640, Tf 412, chunks 402, 17 chunks on 2 ranks."""
    figures = {name: figure.median for name, figure in measured().figures.items()}
    assert figures["c"] == pytest.approx(0.6)
    assert figures["H"] == pytest.approx(1 - 12 / 240)
    assert figures["E"] == pytest.approx(1 - 12 / 240)
    assert figures["B"] == pytest.approx(400 / 412)
    assert figures["split loss"] == pytest.approx(2 / 400)
    assert figures["H, overlap off"] == pytest.approx(0, abs=1e-12)
    assert figures["stolen"] == pytest.approx(10 / 412)
    assert figures["speed-up"] == pytest.approx(640 / 412)


def test_the_share_of_the_link_by_hand():
    """2560 / 2 rows of 2048 bfloat16 in 240 ms at 200 Mbit/s."""
    assert measured().share_of_link == pytest.approx(1280 * 2048 * 2 * 8 / 0.24 / 180e6)
    assert measured(link=None).share_of_link is None


def test_serial_that_costs_more_than_its_parts_flatters_only_e():
    figures = measured(serial=0.70).figures
    assert figures["E"].median == pytest.approx(1 - 12 / 300)
    assert figures["H"].median == pytest.approx(1 - 12 / 240)
    assert figures["serial excess"].median == pytest.approx(60 / 640)


def test_the_bound_counts_the_chunk_that_is_alone():
    """c = 1: the last of t S = 8 chunks is computed when all else is over."""
    assert statistics.bound_reached(0.8, 0.8, 0.9, num_chunks=4, world_size=2) == pytest.approx(1.0)
    assert statistics.bound_reached(0.8, 0.4, 0.9, num_chunks=4, world_size=2) == pytest.approx(0.8 / 0.9)


def test_a_round_counts_with_its_slowest_rank():
    one, other = measured(rounds=3).ranks[0], measured(rounds=3, fused=0.5).ranks[0]
    for rank, seconds in ((one, [0.41, 0.43, 0.41]), (other, [0.42, 0.42, 0.45])):
        rank.seconds[FUSED][:] = seconds
    assert list(Measurement(CASE, None, False, [one, other]).seconds[FUSED]) == [0.42, 0.43, 0.45]


def test_figures_are_taken_within_a_round():
    """The machine was twice as slow in one of three rounds."""
    rank = measured(rounds=3).ranks[0]
    for name in rank.seconds:
        rank.seconds[name][1] *= 2
    assert rank.seconds[PRODUCT][1] == 0.8
    assert Measurement(CASE, None, False, [rank, rank]).figures["H"].low == pytest.approx(0.95)


@pytest.mark.parametrize("values", [(1.0, 2.0, 4.0), (0.3, 0.1, 0.2, 0.9, 0.5), (5.0,), (2.0, 2.0, 2.0)])
def test_the_interval_is_that_of_all_resamples(values):
    """For few values all n^n resamples can be drawn; their quantiles are the truth."""
    medians = sorted(map(standard.median, itertools.product(values, repeat=len(values))))
    found = statistics.estimate(values)
    assert found.median == standard.median(values)
    assert found.low == medians[int(0.025 * len(medians))]
    assert found.high == medians[int(0.975 * len(medians))]


def test_more_rounds_narrow_the_interval():
    def width(number):
        found = statistics.estimate([(7919 * i % 1000) / 1000 for i in range(number)])
        return found.high - found.low

    assert width(400) < width(40) / 2


def test_no_value_is_an_error():
    with pytest.raises(ValueError, match="values must be at least one"):
        statistics.estimate([])


def test_the_bound_of_an_all_reduce_has_its_last_chunk_alone():
    assert statistics.bound_reached(0.8, 0.4, 0.9, 4, 2, reduces_all=True) == pytest.approx((0.8 + 0.1) / 0.9)
    assert statistics.bound_reached(0.4, 0.8, 0.9, 4, 2, reduces_all=True) == pytest.approx((0.8 + 0.1) / 0.9)

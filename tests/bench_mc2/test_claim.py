"""A claim needs every condition of the protocol; each one alone forbids it, by name."""

from __future__ import annotations

import json

import pytest
from fusionkit_bench.mc2 import claim, grid, report, statistics, suite

from tests.bench_mc2.made_up import CASE, CHOSEN, measured

FELL_BACK = CHOSEN | {("all_gather_matmul", "cpu", "serial: few rows"): 2}


def test_a_claim_names_all_that_it_depends_on():
    assert claim.reasons(measured()) == []
    (line,) = report.claims([measured()]).splitlines()
    for word in ("H = 95.0%", "c = 0.60", "S = 17", "t = 2", "180mbit", "oneDNN's product", "15 rounds", "bfloat16"):
        assert word in line


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"link": None}, "the link is not shaped"),
        ({"shares_cores": True}, "ranks share cores"),
        ({"rounds": 14}, "14 rounds, fewer than 15"),
        ({"ran": FELL_BACK}, "fell back: all_gather_matmul on cpu: serial: few rows (4 calls)"),
        ({"ran": {}}, "no fused call is in the ledger"),
        ({"serial": 0.661}, "Ts is +3.3% of Tg + Tc away from it, more than 3%"),
        ({"serial": 0.619}, "Ts is -3.3% of Tg + Tc away from it, more than 3%"),
        ({"collective": 0.116, "serial": 0.516, "control": 0.516}, "c is 0.29, outside 0.3 to 0.9"),
        (
            {"collective": 0.364, "serial": 0.764, "control": 0.764, "link": "120mbit"},
            "c is 0.91, outside 0.3 to 0.9",
        ),
        ({"link": "200mbit"}, "the collective alone reaches 87% of the link, less than 90%"),
        ({"control": None}, "there is no negative control: the backend cannot switch overlap off"),
        ({"control": 0.412}, "with overlap off H is 95.0%, not 0 within 8.0%"),
        ({"control": 0.6616}, "with overlap off H is -9.0%, not 0 within 8.0%"),
    ],
)
def test_each_condition_alone_forbids_it(change, reason):
    found = measured(**change)
    assert claim.reasons(found) == [reason]
    assert report.claims([found]).splitlines()[0].startswith("no claim: all_gather_matmul forward")
    assert f"  {reason}" in report.claims([found]).splitlines()


def test_just_within_the_conditions_is_a_claim():
    assert claim.reasons(measured(serial=0.659, control=0.659)) == []
    assert claim.reasons(measured(serial=0.621, control=0.621)) == []


def test_the_tables_show_every_figure():
    text = report.table([measured(), measured(link=None)])
    for word in ("95.0% [95.0, 95.0]", "0.971 [0.971, 0.971]", "0.5% [0.5, 0.5]", "not shaped", "2560 x 2048 x 2688"):
        assert word in text
    assert "| 400 " in text and "| 412 " in text


def test_json_has_every_round_of_every_rank(tmp_path):
    report.write(tmp_path / "made" / "out.json", [measured(), measured(rounds=2)], [], {"processor": "made up"})
    first, second = json.loads((tmp_path / "made" / "out.json").read_text())["measurements"]
    assert first["claim"] and first["figures"]["H"]["median"] == pytest.approx(0.95)
    assert [len(rank["seconds"]["Tf"]) for rank in first["ranks"]] == [15, 15]
    assert not second["claim"] and second["reasons"] == ["2 rounds, fewer than 15"]


def judged(control, fused=1.0, reason="chosen"):
    ran = {("all_gather_matmul", "cpu", reason): 3}
    return grid.judge(CASE, [grid.RankRatio({"Tf": [fused] * 3, "Tf, overlap off": [control] * 3}, ran)] * 2)


def test_the_grid_names_what_is_slower_than_the_serial_path():
    found = [judged(1.0), judged(1.5), judged(0.98), judged(0.991, reason="serial: few rows")]
    assert [each.is_surely_below for each in found] == [False, False, True, False]
    text = report.grid(found)
    assert "4 shapes; the median below 0.99 of the serial version: 1, with the whole interval: 1" in text
    assert "3 shapes  overlapped" in text and "1 shapes  cpu: serial: few rows" in text
    noisy = grid.Judged(CASE, statistics.Estimate(0.98, 0.9, 1.1), ())
    assert noisy.is_below and not noisy.is_surely_below and noisy.path == "overlapped"


def test_the_grid_proves_nothing_without_a_link_or_a_core_for_each():
    assert suite.Found(judged=[judged(1.0)], shaped=True).proven
    assert not suite.Found(judged=[judged(1.0)], shaped=False).proven
    assert not suite.Found(judged=[judged(1.0)], shaped=True, shares_cores=True).proven
    assert not suite.Found(judged=[judged(0.98)], shaped=True).proven
    assert not suite.Found(shaped=True).proven


def test_the_grid_has_100_shapes_and_few_rows_among_them():
    cases = grid.cases(2, "bfloat16")
    assert len(set(cases)) == 100
    assert {case.op for case in cases} == {"all_gather_matmul", "matmul_reduce_scatter", "matmul_all_reduce"}
    assert {case.direction for case in cases} == {"forward", "backward"}
    rows = {case.M if case.op == "matmul_all_reduce" else case.M // 2 for case in cases}
    assert rows == set(grid.ROWS)

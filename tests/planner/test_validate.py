"""`fusionkit plan validate`: what others measured is predicted from rows that are not judged, and judged by hand-made
figures."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from fusionkit_planner.validate import fitted_memory, fitted_time, judging, least_squares, report, rows, splits
from fusionkit_planner.validate.machine import FittedMachine, parameters
from fusionkit_planner.validate.systems import A100

from fusionkit.cli import main

# Korthikanti et al. 2022, arXiv:2205.05198, tables 2, 4 and 5: A100-80GB. Memory in GiB, without the embedding.
KORTHIKANTI = Path(__file__).with_name("korthikanti.csv")
ONE_NODE = "gpus,global_batch,micro_batch,hidden,heads,layers,sequence,tensor,data,pipeline,step_ms"
# Four rows of vTrain's data/ground_truth_single.csv, MIT (KAIST, 2024).
MEASURED = """4,16,2,1024,16,24,1024,2,2,1,366.155818
8,8,2,2048,16,12,1024,2,1,4,124.569808
8,32,2,2048,16,12,1024,1,2,4,316.686273
8,8,2,1024,16,24,1024,4,2,1,170.124941"""


def test_models_that_no_row_of_the_fit_has_are_predicted():
    """530B and 1T from 22B and 175B: time within 5%, memory within 3%."""
    everything = rows.read([KORTHIKANTI])
    found = report.as_json(report.validate(everything[0:4], everything[4:]))
    assert found["time_mape_percent"] < 5 and found["memory_mape_percent"] < 3
    assert found["judged_rows_that_were_fitted"] == 0 and found["regret_percent"] == 0
    assert found["memory"].keys() == {"state", "activations"}
    assert found["memory"]["activations"]["worst"] < 3


def test_rates_that_rows_were_made_with_are_found_again(tmp_path):
    """Steps are made with known rates, and one of them is planted wrong: it pulls no harder than a bad one."""
    file = written(tmp_path, [f"{8 // p},{64},{b},{h},16,24,1024,{t},{8 // p // t},1,1" for p in (1, 2)
                              for b in (1, 2, 4, 8) for h in (1024, 2048, 4096) for t in (1, 2, 4)])  # fmt: skip
    made = rows.read([file])
    truth = fitted_time.fit(made[:1])
    truth.values.update(product_rate=2.4e14, memory_rate=1.2e12, launch=3e-5, link_rate=1.4e11)
    for factors in truth.factors:
        factors.clear()
    seconds = truth.seconds(made)
    seconds[3] *= 2.5
    known = [row.__class__(**{**row.__dict__, "seconds": time}) for row, time in zip(made, seconds, strict=True)]
    found = fitted_time.fit(known)
    assert found.values["product_rate"] == pytest.approx(2.4e14, rel=0.1)
    assert found.values["launch"] == pytest.approx(3e-5, rel=0.1)
    larger = rows.read([written(tmp_path, ["8,64,2,8192,64,24,2048,2,4,1,1", "8,64,8,8192,64,24,2048,8,1,1,1"])])
    assert found.seconds(larger) == pytest.approx(truth.seconds(larger), rel=0.1)  # shapes that no row had
    missed = np.abs(found.seconds(known) / seconds - 1)
    assert missed[3] > 0.4 and np.delete(missed, 3).mean() < 0.02


def test_least_squares_finds_a_line_past_an_outlier():
    """ln y = a + b z, with one row far off; the prior is wide."""
    z = np.linspace(0, 1, 30)
    measured = 2 + 3 * z
    measured[7] += 5
    slopes = np.stack([np.ones_like(z), z], axis=1)
    problem = least_squares.Problem(
        np.zeros(2), np.full(2, 10.0), lambda x: slopes @ x - measured, lambda x, residuals: slopes
    )
    assert least_squares.solve(problem).numbers == pytest.approx([2, 3], abs=0.02)


@pytest.mark.parametrize("is_disturbed", [True, False])
def test_rows_that_a_disturbance_made_slow_lose_their_pull(is_disturbed):
    """A third of the rows is slow; without the trait they pull the line, and rows that are too fast always do."""
    z = np.linspace(0, 1, 30)
    measured = 2 + 3 * z
    measured[::3] += 0.4
    slopes = np.stack([np.ones_like(z), z], axis=1)

    def miss(sign):
        problem = least_squares.Problem(
            np.zeros(2), np.full(2, 10.0), lambda x: slopes @ x - (2 + 3 * z + sign * (measured - 2 - 3 * z)),
            lambda x, residuals: slopes, is_disturbed=is_disturbed,
        )  # fmt: skip
        return abs(slopes @ least_squares.solve(problem).numbers - 2 - 3 * z).max()

    noise = least_squares.MOST_NOISE  # a third of it, and two
    assert (miss(+1) < noise / 3) == is_disturbed
    assert miss(-1) > 2 * noise / 3


def test_cards_carry_no_more_than_their_data_sheet_says():
    values = {one.name: one.begins for one in parameters(A100)}
    stated, more = (FittedMachine(A100, values | {"node_rate": factor * A100.node_bandwidth}) for factor in (1.0, 1.7))
    half = FittedMachine(A100, values | {"node_rate": 0.5 * A100.node_bandwidth})
    for seconds in (lambda one: one.all_reduce_seconds(64, 1e9), lambda one: one.send_seconds(1e9, 8)):
        assert seconds(more) == seconds(stated) < seconds(half)


def test_regret_and_ranks_by_hand():
    predicted, measured = [1.0, 2.0, 3.0, 5.0, 5.0], [1.2, 1.0, 3.0, 1.0, 2.0]
    first, second = judging.groups(predicted, measured, ["a", "a", "a", "b", "b"])
    assert first.name == "a" and first.regret == pytest.approx(20) and first.correlation == pytest.approx(0.5)
    assert first.closest == pytest.approx(20) and second.closest == pytest.approx(100)
    assert second.correlation is None and second.regret == pytest.approx(0)
    (pair,) = judging.groups(predicted[:2], measured[:2], ["a", "a"])  # where there is no larger group
    assert pair.correlation == pytest.approx(-1)
    assert judging.spearman([1, 2, 2, 4], [1, 2, 3, 4]) == pytest.approx(0.9486833)  # ties share their mean rank
    found = judging.errors([1.1, 0.9], [1.0, 1.0], ["x", "y"])
    assert (found.mean, found.bias, found.worst) == pytest.approx((10, 0, 10))


def written(folder, lines, header=ONE_NODE):
    file = folder / "rows.csv"
    file.write_text("\n".join([header, *lines]) + "\n")
    return file


def test_each_form_is_known_by_its_header(tmp_path):
    one, *_, last = rows.read([written(tmp_path, MEASURED.splitlines())])
    assert (
        one.layout.micro_batches == 4 and one.layout.recompute == "none" and one.seconds == pytest.approx(0.366155818)
    )
    assert last.group != one.group  # another number of devices
    header, line = f"billion_parameters,{ONE_NODE}", "39.1,512,1536,2,8192,64,48,2048,4,32,4,13875.5"
    (many,) = rows.read([written(tmp_path, [line], header)])
    assert many.layout.recompute == "full" and many.layout.devices == 512 and many.layout.micro_batches == 24
    header = "case,model,layout,layers,micro_batches,step_ms,peak_allocated_gib,peak_reserved_gib"
    line = "llama3_405b_l4_tp2_cp4_pp1_dp1_seq32768_mbc4_cef,llama3-405b,tp2cp4pp1,4,4,1984.7,87.03,91.15"
    (b200,) = rows.read([written(tmp_path, [line], header)])
    assert (b200.sequence, b200.layout.context, b200.layout.sharding) == (32768, 4, 1)
    assert b200.peak_bytes == 87.03 * 2**30
    (figure,) = fitted_memory.figures([b200], fitted_memory.fit([]))
    assert figure.predicted == pytest.approx(figure.measured, rel=0.05)  # nothing fitted
    with pytest.raises(ValueError, match="one with the columns"):
        rows.read([written(tmp_path, ["1,2"], "a,b")])
    with pytest.raises(ValueError, match="rows.csv:2 must be a row"):
        rows.read([written(tmp_path, ["4,16,3,1024,16,24,1024,2,2,1,366.1"])])


@pytest.mark.parametrize(
    "line, message",
    [
        ("4,16,0,1024,16,24,1024,2,2,1,366.1", "micro_batch is not above 0"),
        ("4,16,2,1024,0,24,1024,2,2,1,366.1", "heads is not above 0"),
        ("4,16,2,1024,16,24,1024,2,2,1,nan", "a row whose step takes time, got nan"),
        ("4,16,2,1024,16,24,1024,2,2,1,inf", "a row whose step takes time, got inf"),
        ("4,16,2,1024,16,24,1024,2,2,1,-1", "a row whose step takes time, got -0.001"),
        ("", "one with rows below its header"),
    ],
)
def test_a_row_that_cannot_be_is_named(line, message, tmp_path, capsys):
    file = str(written(tmp_path, [line] if line else []))
    assert main(["plan", "validate", "--fit", file, "--judge", file]) == 2
    error = capsys.readouterr().err
    assert message in error and re.search("[.] (Correct that line|Leave it out)", error)


def test_a_file_that_is_none_of_the_forms_is_named_with_where_they_are_listed(tmp_path, capsys):
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe")
    written(tmp_path, ["1,2"], "a,b")
    for name, message in {
        "nothing.csv": "file must be CSV text that can be read, got .*nothing.csv; No such file",
        "bytes.csv": "file must be CSV text that can be read, got .*bytes.csv; 'utf-8' codec",
        "rows.csv": "file must be one with the columns gpus,.*, got .*rows.csv with ..a., .b..",
    }.items():
        assert main(["plan", "validate", "--fit", str(tmp_path / name), "--judge", str(KORTHIKANTI)]) == 2
        assert re.search(f"{message}.*[.] docs/planner.md lists the four forms", capsys.readouterr().err), name


def test_the_command_says_what_it_was_fitted_on(tmp_path, capsys):
    file = written(tmp_path, MEASURED.splitlines())
    assert main(["plan", "validate", "--fit", str(file), "--judge", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["label"] == "simulated" and found["judged_rows_that_were_fitted"] == 4
    assert found["memory_mape_percent"] is None and found["regret_percent"] is None
    written_to = tmp_path / "x.json"
    arguments = ["--fit", str(file), "--judge", str(KORTHIKANTI), str(file), "--json", str(written_to)]
    assert main(["plan", "validate", *arguments]) == 0
    text = capsys.readouterr().out
    assert "warning: 4 of the judged rows are among those that the model was fitted on, and are left out" in text
    assert "simulated" in text and json.loads(written_to.read_text())["time"]["rows"] == 8


def judged(capsys, fit, judge):
    options = [word for name, files in (("--fit", fit), ("--judge", judge)) for word in (name, *map(str, files))]
    assert main(["plan", "validate", *options, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_row_counts_once_however_often_it_is_given(tmp_path, capsys):
    """Four rows are fitted, and of the twelve others eight have a time. Places in files differ, and do not matter."""
    fit = written(tmp_path, MEASURED.splitlines())
    copy = tmp_path / "copy.csv"
    copy.write_text(f"{ONE_NODE}\n" + "\n".join(reversed(MEASURED.splitlines())) + "\n")
    once = judged(capsys, [fit], [KORTHIKANTI])
    assert (once["time"]["rows"], once["repeated_rows"], once["judged_rows_that_were_fitted"]) == (8, 0, 0)
    more = judged(capsys, [fit, copy], [KORTHIKANTI, fit, KORTHIKANTI])
    assert (more["repeated_rows"], more["judged_rows_that_were_fitted"]) == (4 + 12, 4)
    assert {name: more[name] for name in ("time", "rows", "groups", "fitted", "memory")} == {
        name: once[name] for name in ("time", "rows", "groups", "fitted", "memory")
    }
    repeated, known, few = more["warnings"]
    assert "16 rows stand in the files" in repeated and "4 of the judged rows" in known and "the other 12" in known
    assert few == once["warnings"][0]
    (all_known, _) = judged(capsys, [fit], [copy])["warnings"]
    assert "all 4 judged rows" in all_known and "predict nothing. Give other rows to --judge" in all_known


def test_few_fitted_rows_are_told_with_how_many_are_needed(tmp_path, capsys):
    needed = len(parameters(rows.A100))
    few = written(tmp_path, [f"8,{8 * n},8,2048,16,12,1024,2,1,4,{124.5 * n}" for n in range(1, needed)])
    (warning,) = judged(capsys, [few], [KORTHIKANTI])["warnings"]
    assert f"A100 is fitted on {needed - 1} rows and has {needed} rates, so at least {needed} rows of" in warning
    assert main(["plan", "validate", "--fit", str(few), "--judge", str(KORTHIKANTI)]) == 0
    assert warning in capsys.readouterr().out.splitlines()
    enough = written(tmp_path, [f"8,{8 * n},8,2048,16,12,1024,2,1,4,{124.5 * n}" for n in range(1, needed + 1)])
    assert judged(capsys, [enough], [KORTHIKANTI])["warnings"] == []


def test_an_unknown_device_is_not_guessed(tmp_path, capsys):
    header = "case,model,layout,layers,micro_batches,step_ms,peak_allocated_gib,peak_reserved_gib"
    line = "llama3_70b_l12_tp8_pp1_dp1_mbc8_cef,llama3-70b,tp8pp1,12,8,556.7,28.29,29.12"
    file = written(tmp_path, [line], header)
    assert main(["plan", "validate", "--fit", str(KORTHIKANTI), "--judge", str(file)]) == 2
    assert "a file with steps on B200" in capsys.readouterr().err


def test_the_table_of_korthikanti_is_whole():
    with KORTHIKANTI.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 12 and {row["model"] for row in table} == {"GPT 22B", "GPT 175B", "GPT 530B", "GPT 1T"}


def test_splits_are_random_halves_that_a_seed_repeats():
    everything = [row for row in rows.read([KORTHIKANTI]) if row.seconds]
    fitted, judged = splits.halves(everything, 3)
    assert sorted(row.name for row in fitted + judged) == sorted(row.name for row in everything)
    assert (fitted, judged) == splits.halves(everything, 3) != splits.halves(everything, 4)
    assert len(splits.halves(everything[:5], 0)[0]) == 2


def test_splits_give_the_figures_of_each_half_their_mean_and_their_worst(tmp_path, capsys):
    written_to = tmp_path / "x.json"
    arguments = ["plan", "validate", "--judge", str(KORTHIKANTI), "--splits", "2"]
    assert main([*arguments, "--json", str(written_to)]) == 0
    text, found = capsys.readouterr().out, json.loads(written_to.read_text())
    fitted, judged = splits.halves(rows.read([KORTHIKANTI]), 1)
    alone = report.as_json(report.validate(fitted, judged))
    assert found["splits"][1] == {name: alone[name] for name in splits.FIGURES}
    for name, worst in (("time_mape_percent", max), ("regret_percent", max), ("rank_correlation", min)):
        both = [one[name] for one in found["splits"]]
        assert found["worst"][name] == worst(both) and found["mean"][name] == pytest.approx(sum(both) / 2)
    assert "simulated" in text and f"| mean | {found['mean']['time_mape_percent']:.2f}% |" in text
    assert main([*arguments, "--json"]) == 0 and json.loads(capsys.readouterr().out) == found


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--splits", "0"], "--splits must be at least 1, got 0"),
        ([], "--fit must be files with measured steps, got none. Give some, or divide those of --judge by --splits 20"),
        (
            ["--splits", "2", "--fit", str(KORTHIKANTI)],
            "--judge must be at least two rows that --fit does not have",
        ),
    ],
)
def test_what_cannot_be_divided_is_told(arguments, message, capsys):
    assert main(["plan", "validate", "--judge", str(KORTHIKANTI), *arguments]) == 2
    assert message in capsys.readouterr().err

"""The profile of a step: its parts are the step, whatever takes the time, and the table says what came out."""

from __future__ import annotations

import itertools

import pytest

from examples.llama2_13b.bench import engine_step as benchmark
from examples.llama2_13b.export import ExportFlags, export


@pytest.fixture(scope="module")
def exported(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine_step") / "tiny"
    export(ExportFlags(str(tiny_folder), str(folder)))
    return folder


def test_every_part_is_counted_once(exported):
    """A clock that goes on by a second at each look. So a part has a second a call and one for each look within it."""
    ticks = itertools.count()
    measured = benchmark.Measured(exported, lambda: float(next(ticks)))
    for rows in (1, 3):
        (step,) = measured.steps(rows, 5, benchmark.WAYS["greedy"], 1)
        calls = {part: ms / 1e3 for part, ms in step.items()}
        assert calls["the model's ops"] == 1 and calls["inputs and scores"] == 2
        assert calls["choice of tokens"] == rows and calls["text"] >= rows
        looks = 2 + 4 + 2 * rows + 2 * calls["text"]  # of the step, the program and its run, choices and decoding
        assert sum(calls.values()) == looks - 1


def test_the_table_says_what_is_beside_the_ops():
    one = dict.fromkeys(benchmark.PARTS, 0.5) | {"the model's ops": 18.0}
    many = dict.fromkeys(benchmark.PARTS, 1.0) | {"the model's ops": 36.0}
    lines = benchmark.table({("greedy", 1): one, ("greedy", 16): many}).splitlines()
    assert lines[0] == "| ms a step | greedy, 1 row | greedy, 16 rows |"
    assert lines[2] == "| the model's ops | 18.00 | 36.00 |"
    assert lines[-2] == "| beside the ops | 11.1% | 11.1% |"
    assert lines[-1] == "| tokens/s | 50.0, 1.0 times | 400.0, 8.0 times |"


@pytest.mark.parametrize("ways", [list(benchmark.WAYS), ["greedy"]])
def test_the_command_measures_the_ways_that_are_asked_for(exported, capsys, ways):
    words = ["--model", str(exported), "--cached=4", "--steps=2", "--rounds=1", "--rows", "1", "2"]
    one = len(ways) == 1
    benchmark.main([*words, *(["--ways", *ways, "--beside_without", "all"] if one else [])])
    lines = capsys.readouterr().out.splitlines()
    programs = ("", ", without") if one else ("",)
    named = [f"{way}{which}, {rows}" for way in ways for rows in ("1 row", "2 rows") for which in programs]
    assert lines[0] == f"| ms a step | {' | '.join(named)} |" and len(lines) == 4 + len(benchmark.PARTS)

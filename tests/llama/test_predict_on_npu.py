"""`predict` on the emulated npu."""

from __future__ import annotations

import re
import sys

from examples.llama2_13b.export import ExportFlags, export
from tests.emulator.emulated import run


def test_predict_shows_the_passes_and_answers_as_on_the_host(tiny_folder, tmp_path):
    export(ExportFlags(str(tiny_folder), str(tmp_path / "exported"), "float16"))
    words = ("--model_name_or_path", str(tmp_path / "exported"), "--decode_strategy", "greedy_search")
    predict = (sys.executable, "-m", "examples.llama2_13b.predict", *words, "--max_length", "4", "--batch_size", "2")
    answers = []
    for device, more in (("npu:0", ()), ("npu:0", ("--without_passes", "all")), ("cpu", ())):
        done = run("npu", *predict, "--device", device, *more, "one", "two words", "three")
        assert done.returncode == 0, done.stderr
        answers.append(done.stdout)
        fused = "pass llama_fuse_attention_layer_begin: 1 x first layer" in done.stderr
        assert fused == (device == "npu:0" and not more)
    assert answers[0] == answers[1] == answers[2]


def test_a_prefix_is_not_reused_where_the_fused_layers_would_be_left(tiny_folder, tmp_path):
    """The vendor's op begins a row at its first position. On the host the second prompt finds the first's beginning."""
    export(ExportFlags(str(tiny_folder), str(tmp_path / "exported"), "float16"))
    words = ("--model_name_or_path", str(tmp_path / "exported"), "--decode_strategy", "greedy_search")
    sizes = ("--max_length", "2", "--batch_size", "1", "--block_size", "4")
    answers, found = [], []
    for device in ("npu:0", "cpu"):
        command = (sys.executable, "-m", "examples.llama2_13b.predict", *words, *sizes, "--device", device)
        done = run("npu", *command, "one two three four five six", "one two three four five seven")
        assert done.returncode == 0, done.stderr
        assert "steps op by op" not in done.stderr
        answers.append(done.stdout)
        found.append(int(re.findall(r"(\d+) of \d+ prompt tokens found", done.stderr)[0]))
    assert answers[0] == answers[1] and found[0] == 0 < found[1]


def test_codes_are_refused_by_name(tiny_folder, tmp_path):
    """The vendor's ops take other codes and scales. What to do instead is said."""
    export(ExportFlags(str(tiny_folder), str(tmp_path / "exported"), "float16", weight_dtype="int4"))
    words = ("--model_name_or_path", str(tmp_path / "exported"), "--device", "npu:0", "one")
    done = run("npu", sys.executable, "-m", "examples.llama2_13b.predict", *words)
    assert done.returncode == 1 and done.stdout == ""
    assert "weights on npu:0 must be floats, got codes of 8 or 4 bits" in done.stderr
    assert "Export the model with float weights, or load it for cpu" in done.stderr

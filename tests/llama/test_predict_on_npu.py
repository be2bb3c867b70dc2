"""`predict` on the emulated npu."""

from __future__ import annotations

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

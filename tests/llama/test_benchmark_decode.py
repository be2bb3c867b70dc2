"""Decoding beside peers: the files are what they say, all contestants do the same work, and a missing peer is named."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from functools import partial

import gguf
import numpy as np
import pytest
import torch
from gguf import quants
from transformers import AutoModelForCausalLM

from examples.llama2_13b.bench.decode import __main__ as command
from examples.llama2_13b.bench.decode import (
    chart,
    llama_library,
    openvino_genai,
    random_gguf,
    report,
    requantized_gguf,
    worker,
)
from examples.llama2_13b.bench.decode.contestant import Answer, Facts, Missing
from examples.llama2_13b.bench.decode.fusionkit_engine import FusionkitEngine
from examples.llama2_13b.bench.decode.gguf_weights import described
from examples.llama2_13b.bench.decode.rounds import WARM_UP, Entry, Turn, Work, measure
from examples.llama2_13b.export import ExportFlags, export
from examples.llama2_13b.folders.config import LlamaConfig

CONFIG = LlamaConfig(
    vocab_size=320,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=128,
    rms_norm_eps=1e-5,
)
PROMPTS = [[7, 80, 300, 5], [9, 9, 41, 200], [310, 12, 3, 64]]
STEPS = 5
PEERS = {"llama.cpp": (worker.llama_cpp, 2), "OpenVINO GenAI": (worker.openvino_genai, 2, 64, len(PROMPTS), 1)}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for kind in random_gguf.CODES:
        random_gguf.write(folder / f"{kind}.gguf", CONFIG, kind)
    return folder


@pytest.fixture(scope="module")
def greedy(models):
    """transformers' answers to PROMPTS with the file of Q8_0, [prompts, 1 + STEPS]."""
    model = AutoModelForCausalLM.from_pretrained(models, gguf_file="Q8_0.gguf", dtype=torch.float32).eval()
    tokens = torch.tensor(PROMPTS)
    answers = model.generate(tokens, max_new_tokens=STEPS + 1, do_sample=False, eos_token_id=None, pad_token_id=0)
    return answers[:, len(PROMPTS[0]) :].tolist()


@pytest.mark.parametrize("kind", random_gguf.CODES)
def test_a_random_file_holds_blocks_of_its_kind(models, kind):
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(models / f"{kind}.gguf").tensors}
    assert {name: tuple(reversed(each.shape.tolist())) for name, each in tensors.items()} == dict(
        random_gguf.shapes(CONFIG)
    )
    for tensor in tensors.values():
        floats = quants.dequantize(tensor.data, tensor.tensor_type)
        if floats.ndim == 1:
            assert (floats == 1).all()
            continue
        assert tensor.tensor_type.name == kind
        assert np.std(floats) == pytest.approx((13 / 12 / floats.shape[1]) ** 0.5, rel=0.1)  # of scales in 0.5..1.5
        assert abs(np.mean(floats)) < 0.1 * np.std(floats)


def test_what_a_step_reads_of_a_file(models):
    """A head of its own leaves the embedding unread, but for a row a token."""
    types, num_bytes = described(models / "Q8_0.gguf")
    layer = 4 * 64 * 64 + 3 * 64 * 96
    assert types == "Q8_0 100%" and num_bytes == (2 * layer + 320 * 64) * 34 // 32 + 5 * 64 * 4


@pytest.mark.parametrize(
    "change, rule",
    [({"hidden_size": 80}, "hidden_size must be a multiple of 32"), ({"vocab_size": 259}, "at least 260")],
)
def test_sizes_that_fit_no_blocks_are_refused(tmp_path, change, rule):
    config = dataclasses.replace(CONFIG, head_dim=0, **change)
    with pytest.raises(ValueError, match=rule):
        random_gguf.write(tmp_path / "x.gguf", config, "Q8_0")
    assert not list(tmp_path.iterdir())


def test_other_matrices_leave_the_rest_as_it_was(models, tmp_path):
    requantized_gguf.write(models / "Q8_0.gguf", tmp_path / "Q4_0.gguf", "Q4_0")
    before, after = gguf.GGUFReader(models / "Q8_0.gguf"), gguf.GGUFReader(tmp_path / "Q4_0.gguf")
    for name, field in before.fields.items():
        if not name.startswith("GGUF.") and name != "general.file_type":
            assert after.fields[name].contents() == field.contents(), name
    for one, other in zip(before.tensors, after.tensors, strict=True):
        floats, theirs = (quants.dequantize(each.data, each.tensor_type) for each in (one, other))
        wanted = "F32" if floats.ndim == 1 else "Q8_0" if one.name in requantized_gguf.SENSITIVE else "Q4_0"
        assert other.tensor_type.name == wanted and one.name == other.name
        assert np.abs(floats - theirs).max() <= (0 if wanted != "Q4_0" else np.abs(floats).max() / 8)


@pytest.mark.parametrize("weight_dtype", [None, "int8"], ids=["floats", "codes"])
def test_ours_answers_as_transformers_does(models, greedy, tmp_path, weight_dtype):
    file = models / "Q8_0.gguf"
    export(ExportFlags(str(file), str(tmp_path / "exported"), weight_dtype=weight_dtype))
    contestant = FusionkitEngine(tmp_path / "exported", 2, file if weight_dtype else None)
    answer = contestant.answer(PROMPTS, STEPS)
    assert answer.tokens == greedy and len({tuple(each) for each in greedy}) == len(PROMPTS)
    assert len(answer.steps_s) == STEPS and answer.prefill_s > 0 and min(answer.steps_s) > 0
    assert contestant.answer(PROMPTS[:1], STEPS).tokens == greedy[:1]
    whole = (tmp_path / "exported" / "model.pdiparams").stat().st_size
    floats = "float32", whole - 320 * 64 * 4
    facts = contestant.facts
    assert (facts.weights, facts.bytes_a_step) == (described(file) if weight_dtype else floats)
    assert facts.cache == "float32"


@pytest.mark.parametrize("name, make", PEERS.items())
def test_a_peer_answers_as_transformers_does(models, greedy, name, make):
    """In a process of its own, as in the rounds: their OpenMP and TBB do not live with Paddle's."""
    try:
        peer = worker.Worker(name, partial(make[0], models / "Q8_0.gguf", *make[1:]), 2)
    except Missing as missing:
        pytest.skip(str(missing))
    tokens = peer.ask("answer", PROMPTS, STEPS).tokens
    peer.close()
    assert peer.facts.weights == "Q8_0 100%" and [len(each) for each in tokens] == [STEPS + 1] * len(PROMPTS)
    # Peers round activations, or keys and values, to 8 bits. So later tokens may differ.
    assert [each[0] for each in tokens] == [each[0] for each in greedy]


def test_a_missing_peer_is_named_with_its_command(tmp_path, monkeypatch):
    with pytest.raises(Missing, match="libllama.v0.5.0.so is not there. Run: make decode-peers"):
        llama_library.LlamaLibrary(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Missing, match="openvino, openvino_genai, .* is not installed. Run: make decode-peers"):
        openvino_genai.OpenVinoGenAI(tmp_path, 2, 64, 1, 1)


def test_the_library_that_llama_cpp_must_choose_is_the_processors_best():
    flags = {
        "haswell": "avx2 fma f16c bmi2",
        "alderlake": "avx2 fma f16c bmi2 avx_vnni",
        "skylakex": "avx2 avx512f avx512bw avx512dq avx512vl",
        "zen4": "avx2 avx512f avx512_bf16 avx512_vnni avx512_vbmi",
        "sapphirerapids": "avx512f avx512_bf16 avx512_vnni avx512_vbmi avx512_fp16 amx_int8 amx_tile",
        "an older one": "sse4_2",
    }
    for name, listed in flags.items():
        assert llama_library.best_cpu_library(f"processor\t: 0\nflags\t\t: {listed}\nbugs\t\t: avx2\n") == name


def turn(seconds, tokens, gb_per_s=10.0):
    return Turn(0.5, {1: [seconds], 2: [seconds, 3 * seconds, seconds]}, tokens, gb_per_s)


def entry(name, seconds, tokens):
    facts = Facts("v", "k", "w", "c", bytes_a_step=10**8)
    return Entry(name, lambda: None, facts, 1.0, [turn(seconds, {1: tokens[:1], 2: tokens}) for _ in range(3)])


WORK = Work([[1], [2]], [1] * 512, [1, 2], 3)


def test_figures_are_medians_and_shares_of_what_was_read_in_the_same_round():
    one = entry("fusionkit", 0.02, [[1, 2, 3], [4, 5, 6]])
    one.turns[1] = turn(0.02, one.turns[1].tokens, gb_per_s=20.0)
    assert report.tokens_per_s(one, 1) == pytest.approx([50] * 3)
    assert report.tokens_per_s(one, 2) == pytest.approx([100] * 3)
    assert report.share_of_bandwidth(one) == pytest.approx([0.5, 0.25, 0.5])
    assert report.prefill_per_s(one, WORK) == [1024] * 3


def test_other_work_is_told():
    ours = entry("fusionkit", 0.02, [[1, 2, 3], [4, 5, 6]])
    near = entry("near", 0.02, [[1, 2, 9], [8, 5, 6]])
    other = entry("other", 0.02, [[7, 2, 3], [8, 5, 6]])
    assert report.agreement(near, ours, 2) == (2, 6) and report.agreement(ours, ours, 2) == (6, 6)
    assert report.others_work([ours, near], 2) == []
    assert report.others_work([ours, near, other], 2) == [
        "other begins 0 of 2 answers as fusionkit does: this is other work"
    ]
    lines = report.table([ours, near], WORK).splitlines()
    assert lines[2] == ("| | 1 row | 2 rows | of read bandwidth | prefill of 512 | tokens as the first, 2 rows |")
    assert lines[5] == "| near | 50.0 | 100.0 | 50% | 1024.0 | 2 of 6 |"


def test_the_picture_is_drawn(tmp_path):
    entries = [entry(name, 0.02, [[1], [2]]) for name in ("fusionkit float32", "llama.cpp")]
    chart.draw(tmp_path / "new" / "bars.png", entries, WORK, "a model; $ a processor; 2 threads")
    assert (tmp_path / "new" / "bars.png").read_bytes().startswith(b"\x89PNG")


class Here:
    """A contestant in this process; `asked` tells the order."""

    asked: list = []
    facts = None

    def __init__(self, name, make, num_threads):
        self.name = name
        make()

    def ask(self, method, *arguments):
        if method == "gb_per_s":
            return 10.0
        self.asked.append(self.name)
        prompts, steps = arguments
        return Answer([[1] * (steps + 1) for _ in prompts], 0.1, [0.1] * steps)

    def peak_memory_gb(self):
        return 1.0

    def close(self):
        self.asked.append(f"{self.name} closed")


@pytest.mark.parametrize("is_alone", [False, True])
def test_contestants_take_turns_and_the_missing_one_is_left_out(monkeypatch, is_alone):
    from examples.llama2_13b.bench.decode import rounds

    def missing():
        raise Missing("c is not there. Run: make c")

    monkeypatch.setattr(rounds, "Worker", Here)
    monkeypatch.setattr(rounds, "SETTLE_S", 0)
    monkeypatch.setattr(Here, "asked", [])
    entries = [Entry("a", lambda: None), Entry("b", lambda: None), Entry("c", missing)]
    memory = Here("memory", lambda: None, 1)
    said = list(measure(entries, memory, Work([[1]], [1], [1], 2), 2, 1, is_alone))
    assert said == [
        "round 1 of 2: a", "round 1 of 2: b", "left out: c is not there. Run: make c",
        "round 2 of 2: b", "round 2 of 2: a",
    ]  # fmt: skip
    assert [each.name for each in entries] == ["a", "b"] and all(len(each.turns) == 2 for each in entries)
    assert all(len(each.steps_s[1]) == 2 and len(each.tokens[1][0]) == 3 + WARM_UP for e in entries for each in e.turns)
    answers = [name for name in Here.asked if "closed" not in name]
    warm = ["a"] * 2 if is_alone else []
    assert answers == ["a"] * 4 + ["b"] * 4 + (["b"] * 2 if is_alone else []) + ["b"] * 2 + warm + ["a"] * 2
    assert Here.asked.count("a closed") == (2 if is_alone else 1)


def test_the_command_measures_a_slice(tmp_path, capsys):
    words = "--slice Q8_0 --num_hidden_layers 1 --hidden_size 64 --intermediate_size 96 --num_attention_heads 4"
    words += " --vocab_size 320 --rows 1 2 --prompt 4 --long_prompt 8 --steps 2 --rounds 1"
    files = {name: tmp_path / f"result.{name}" for name in ("json", "md", "png")}
    flags = ["--json", files["json"], "--table", files["md"], "--chart", files["png"], "--folder", tmp_path]
    contestants = ["--contestants", "fusionkit float32"]
    assert command.main([*words.split(), *map(str, flags), *contestants]) == 0
    printed = capsys.readouterr().out
    assert "Q8_0-1x64.gguf; " in printed and "| fusionkit float32 |" in printed
    assert files["md"].read_text() == printed and files["png"].read_bytes().startswith(b"\x89PNG")
    measured = json.loads(files["json"].read_text())
    ours = measured["contestants"]["fusionkit float32"]
    assert len(ours["tokens_per_s"]["2"]) == 1 and ours["agreed_tokens"]["2"] == [10, 10]
    assert ours["turns"][0]["gb_per_s"] > 0 and measured["processor"] in printed


def test_too_many_tokens_are_one_line(tmp_path, capsys):
    words = "--slice Q4_0 --num_hidden_layers 1 --hidden_size 64 --intermediate_size 96 --num_attention_heads 4"
    assert command.main([*words.split(), "--prompt", "1000000", "--folder", str(tmp_path)]) == 1
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .startswith("error: bench.decode: --rows and --prompt must need at most")
    )

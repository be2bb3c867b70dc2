"""The command: what it prints and writes, and what it refuses before work starts."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from examples.llama2_13b.export import ExportFlags, export
from examples.llama2_13b.generate.prompts import DEFAULT, Prompt, from_file, from_texts
from examples.llama2_13b.io import flags
from examples.llama2_13b.predict import PROGRAM, PredictFlags, Predictor, predict

ROOT = Path(__file__).parents[2]
LINES = [
    {"src": "type#boots", "tgt": "Walk on."},
    {"src": ["类型#挂面", "短一些"], "tgt": ["一碗安慰。", "安慰。"]},
    {"src": "类型#睡衣*材质#真丝", "tgt": "夜色渐深。"},
]


@pytest.fixture(scope="session")
def exported(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict") / "exported"
    export(ExportFlags(str(tiny_folder), str(folder)))
    return folder


@pytest.fixture
def damaged(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "damaged")


@pytest.fixture
def data_file(tmp_path):
    path = tmp_path / "questions.json"
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in LINES), encoding="utf-8")
    return path


def parse(*words):
    return flags.parse(PredictFlags, list(map(str, words)), PROGRAM)


def run(folder, *words):
    return predict(parse("--model_name_or_path", folder, "--max_length", 4, *words))


def test_banners_and_json_lines_of_a_data_file(exported, data_file, tmp_path, capsys):
    output = tmp_path / "answers.json"
    assert run(exported, "--data_file", data_file, "--output_file", output, "--batch_size", 2) == 0
    written = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [{"src": line["src"], "tgt": line["tgt"]} for line in written] == LINES
    shown = "".join(
        f"***********Source**********\n{source}\n***********Target**********\n{target}\n"
        f"***********Output**********\n{line['output']}\n"
        for source, target, line in zip(
            ["type#boots", "类型#挂面\n短一些", "类型#睡衣*材质#真丝"],
            ["Walk on.", "一碗安慰。\n安慰。", "夜色渐深。"],
            written,
            strict=True,
        )
    )
    assert capsys.readouterr().out == shown


def test_prompts_on_the_command_line_print_their_json_line(exported, capsys):
    run(exported, "first", "--top_p", 0.9, "second")
    lines = capsys.readouterr().out.splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    assert [line["src"] for line in found] == ["first", "second"]
    assert all(line["tgt"] == "" for line in found)


def test_without_a_prompt_the_idiom_is_asked_about(exported, capsys):
    run(exported)
    assert "温故而知新" in DEFAULT and DEFAULT in capsys.readouterr().out


def test_a_text_file_is_a_prompt_a_line(exported, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("one\n\ntwo\n")
    run(exported, "--data_file", tmp_path / "prompts.txt")
    assert capsys.readouterr().out.count("***********Source**********") == 2


def test_penalties_and_a_stop_string_reach_the_answer(exported, capsys):
    """Greedy answers repeat themselves; a penalty of 2 for each time they did makes that rarer."""
    greedy = ("--decode_strategy", "greedy_search", "--max_length", 60, "--model_name_or_path", exported)

    def answer(*words):
        predictor = Predictor(parse(*greedy, *words), from_texts(["one"]))
        return next(predictor.run()).output, predictor._requests[0].settings

    whole, _ = answer()
    stop = whole[len(whole) // 2 :][:2]
    assert answer("--stop", stop)[0] == whole[: whole.index(stop)]
    other, chosen = answer("--frequency_penalty", 2.0, "--presence_penalty", -1.0)
    assert (chosen.frequency_penalty, chosen.presence_penalty) == (2.0, -1.0)
    assert other != whole and len(set(other.split())) > len(set(whole.split()))


def test_words_after_two_dashes_are_prompts():
    assert parse("--model_name_or_path", "m", "one", "--", "--two", "three").prompts == ("one", "--two", "three")


def test_a_line_of_text_ends_at_a_newline_only(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("one\u2028line\fstill\r\n\nsecond".encode())
    assert [(one.question, one.where) for one in from_file(path)] == [
        ("one\u2028line\fstill", f"{path}:1"),
        ("second", f"{path}:3"),
    ]


def test_answers_come_in_the_order_of_the_prompts(exported):
    asked = from_texts([f"prompt {number}" for number in range(7)])
    predictor = Predictor(parse("--model_name_or_path", exported, "--batch_size", 3, "--max_length", 30), asked)
    ended = []
    step = predictor.engine.step

    def recorded():
        deltas = step()
        ended.extend(int(delta.request_id) for delta in deltas if delta.finish_reason)
        return deltas

    predictor.engine.step = recorded
    ends = tuple(range(2, 100))
    predictor._requests = [dataclasses.replace(one, eos_token_ids=ends) for one in predictor._requests]
    assert [prediction.prompt for prediction in predictor.run()] == asked
    assert ended != sorted(ended)


def test_a_seed_repeats_its_answers(exported):
    def outputs(*words):
        flags = parse("--model_name_or_path", exported, "--max_length", 12, *words)
        return [prediction.output for prediction in Predictor(flags, from_texts(["a", "b"])).run()]

    assert outputs() == outputs("--seed", 42, "--batch_size", 1) != outputs("--seed", 43)


def test_a_fresh_process_prints_nothing_but_the_answers(exported):
    command = [sys.executable, "-m", PROGRAM, "--model_name_or_path", str(exported), "--max_length", "4", "hello"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"GLOG_v": "0"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("***********Source**********\nhello\n***********Target**********\n\n***")
    assert "pass" not in done.stdout and len(done.stdout.splitlines()) >= 7
    assert "prompts: 1; tokens: " in done.stderr and "Traceback" not in done.stderr


def command(folder, *words):
    return [sys.executable, "-m", PROGRAM, "--model_name_or_path", str(folder), "--max_length", "3", *map(str, words)]


def start(folder, *words, **environment):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command(folder, *words), cwd=ROOT, env=os.environ | environment, **pipes)


# What a command says on stderr once the model is loaded.
PASSES = "pass pack_weights: 9 x weight in float32\npass fuse_decoder_layer: 2 x decoder layer\n"
QUESTIONS = ["类型#裙 😀", "é", "plain"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_every_answer_arrives_whatever_the_screen_can_show(exported, tmp_path, encoding):
    (tmp_path / "questions.txt").write_text("\n".join(QUESTIONS), encoding="utf-8")
    words = ["--data_file", tmp_path / "questions.txt"]
    with start(exported, *words, "--output_file", tmp_path / "out.json", PYTHONIOENCODING=encoding) as process:
        shown, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    written = (tmp_path / "out.json").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["src"] for line in written] == QUESTIONS
    assert QUESTIONS[0].encode(encoding, "backslashreplace") in shown
    with start(exported, *words, PYTHONIOENCODING=encoding) as process:
        shown, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    lines = [line for line in shown.decode(encoding).split("\n") if line.startswith("{")]
    assert [json.loads(line) for line in lines] == [json.loads(line) for line in written]


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_costs_no_answer_in_the_file(exported, tmp_path, unbuffered):
    words = ["--output_file", tmp_path / "out.json", *QUESTIONS]
    with start(exported, *words, PYTHONUNBUFFERED=unbuffered) as process:
        process.stdout.close()
        process.stderr.close()
    assert process.returncode == 0
    written = (tmp_path / "out.json").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["src"] for line in written] == QUESTIONS


def test_without_a_file_a_reader_that_goes_ends_the_command_quietly(exported):
    with start(exported, *QUESTIONS) as process:
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 128 + signal.SIGPIPE
    assert errors == PASSES.encode()


@pytest.mark.parametrize("words", [[], ["--output_file", "/dev/full"]])
def test_a_disk_that_takes_no_answer_is_an_error(exported, words):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command(exported, *words, "a"), cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and done.stderr == f"{PASSES}error: [Errno 28] No space left on device\n"


def test_closed_streams_cost_nothing(exported, tmp_path):
    words = [*command(exported, "--output_file", tmp_path / "out.json", "a"), ">&-", "2>&-"]
    assert subprocess.run(" ".join(words), shell=True, cwd=ROOT).returncode == 0
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["src"] == "a"


@pytest.mark.parametrize(
    "words, text",
    [
        (["--tempreature", 1.0], "there is no flag --tempreature; did you mean --temperature?"),
        (["--prompts", "x"], "there is no flag --prompts"),
        (["--max_length", "long"], "--max_length must be of type int, got 'long'"),
        (["--stop", ""], "--stop must be a text that is not empty, got an empty one"),
        (["--batch_size", 0], "--batch_size must be at least 1, got 0"),
        (["--seed", -1], "--seed must be at least 0, got -1"),
        (["--data_file", "a.json", "prompt"], "--data_file must be left out with prompts on the command line"),
        (["--data_file", "a.json", "--output_file", "a.json"], "--output_file must be another file than data_file"),
    ],
)
def test_bad_flags_are_refused(words, text):
    with pytest.raises(ValueError, match=text.replace("?", r"\?")):
        parse("--model_name_or_path", "somewhere", *words)


@pytest.mark.parametrize(
    "words, text",
    [
        (["--decode_strategy", "greedy_search", "--top_p", 0.5], "--top_p must be left out with greedy_search"),
        (["--decode_strategy", "greedy_search", "--top_k", 5], "--top_k must be left out with greedy_search"),
        (["--top_k", -1], "top_k must be at least 0"),
        (["--presence_penalty", 3.0], r"presence_penalty must be in \[-2, 2\]"),
        (["--repetition_penalty", "inf"], "repetition_penalty must be finite, got inf"),
        (["--min_p", "nan"], "min_p must be finite, got nan"),
        (["--decode_strategy", "beam"], "decode_strategy must be sampling or greedy_search, got beam"),
        (["--temperature", 0.0], "temperature must be above 0"),
        (["--max_length", 256], "--max_length must be below the model's 256 positions, got 256"),
        (
            ["x" * 400],
            "prompt 1 must be at most 252 tokens long, got .*; the model has 256 positions .* Lower --max_length",
        ),
        (["a", "b\udcff"], "prompt 2 must be Unicode text"),
        (["--data_file", "nowhere.json"], "nowhere.json"),
        (["--output_file", "no/such/folder/out.json"], "no/such/folder"),
    ],
)
def test_what_cannot_be_answered_is_refused(exported, words, text):
    with pytest.raises((ValueError, OSError), match=text):
        run(exported, *words)


def settings_file(folder, **fields):
    (folder / "generation_config.json").write_text(json.dumps(fields))


def answers(folder, *words):
    """Their lengths in tokens; no token ends one."""
    predictor = Predictor(parse("--model_name_or_path", folder, *words), from_texts(["a", "x" * 150]))
    lengths = dict.fromkeys("01", 0)
    for request in predictor._requests:
        predictor.engine.add(dataclasses.replace(request, eos_token_ids=()))
    while predictor.engine.has_work:
        for delta in predictor.engine.step():
            lengths[delta.request_id] += len(delta.tokens)
    return [len(tokens) for tokens in predictor._tokens], list(lengths.values())


def test_an_answer_is_as_long_as_flag_file_and_positions_allow(damaged):
    prompts, lengths = answers(damaged)
    assert lengths == [256 - length for length in prompts]  # all positions, which are fewer than 256 new tokens
    settings_file(damaged, max_new_tokens=9, max_length=100)
    assert answers(damaged)[1] == [9, 9]
    assert answers(damaged, "--max_length", 5)[1] == [5, 5]
    settings_file(damaged, max_new_tokens=1000)
    assert answers(damaged)[1] == [256 - length for length in prompts]
    settings_file(damaged, max_length=200)
    assert answers(damaged)[1] == [200 - length for length in prompts]
    settings_file(damaged, max_length=20)
    with pytest.raises(
        ValueError,
        match="prompt 2 must be at most 19 tokens .* max_length of generation_config.json is 20. Give --max_length,",
    ):
        answers(damaged)


def test_top_k_of_the_file_reaches_the_export_and_the_answers(tiny_folder, tmp_path, capsys):
    source = shutil.copytree(tiny_folder, tmp_path / "source")
    settings_file(source, do_sample=True, top_k=1, num_beams=4, max_new_tokens=12)
    notice = "generation_config.json: without effect here: num_beams 4"
    export(ExportFlags(str(source), str(tmp_path / "exported")))
    assert notice in capsys.readouterr().out
    written = json.loads((tmp_path / "exported" / "generation_config.json").read_text())
    assert written.items() >= {"top_k": 1, "num_beams": 4, "max_new_tokens": 12}.items()

    def output(*words):
        assert predict(parse("--model_name_or_path", tmp_path / "exported", "hello", *words)) == 0
        captured = capsys.readouterr()
        assert captured.err.count(notice) == 1
        return captured.out

    greedy = output("--decode_strategy", "greedy_search")
    assert output("--seed", 1) == output("--seed", 2) == greedy
    assert output("--seed", 1, "--top_k", 0) != greedy != output("--seed", 1, "--top_k", 50)
    assert output("--top_k", 50, "--min_p", 1.0) == greedy


def test_src_length_keeps_the_end_of_a_source(exported, capsys):
    assert run(exported, "--src_length", 50, "x" * 400) == 0


def test_a_bad_line_is_named_before_work_starts(exported, tmp_path):
    (tmp_path / "bad.json").write_text('{"src": "a", "tgt": "b"}\n{"src": 3, "tgt": "b"}\n')
    with pytest.raises(ValueError, match=r"bad.json:2: src must be a text"):
        run(exported, "--data_file", tmp_path / "bad.json")
    (tmp_path / "empty.json").write_text("\n")
    with pytest.raises(ValueError, match="must hold at least one prompt"):
        run(exported, "--data_file", tmp_path / "empty.json")


@pytest.mark.parametrize("name", ["model.json", "model.pdiparams", "model.sizes"])
@pytest.mark.parametrize("size", [None, 0, 30, -2])
def test_a_missing_or_truncated_program_is_named(damaged, name, size):
    path = damaged / name
    if size is None:
        path.unlink()
    else:
        os.truncate(path, size if size >= 0 else path.stat().st_size - 2)
    with pytest.raises((ValueError, OSError), match=r"damaged/model.*Export it again"):
        run(damaged, "hello")


@pytest.mark.parametrize("name", ["model.json", "model.pdiparams"])
def test_a_damaged_program_is_named(damaged, name):
    content = bytearray((damaged / name).read_bytes())
    content[-20] ^= 4
    (damaged / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"damaged/{name}: must be of checksum .*Export it again"):
        run(damaged, "hello")


def test_a_program_of_another_model_is_named(damaged):
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(
        ValueError, match="model.json: must have the inputs of the 3 layers in config.json, .*key_cache_2"
    ):
        run(damaged, "hello")
    (damaged / "config.json").write_text(json.dumps(config | {"torch_dtype": "int8"}))
    with pytest.raises(ValueError, match="torch_dtype must be float32 or bfloat16 or float16, got 'int8'"):
        run(damaged, "hello")


def test_a_cache_of_another_dtype_than_the_program_is_an_error(damaged):
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps(config | {"torch_dtype": "bfloat16"}))
    with pytest.raises(ValueError, match="key_cache"):
        run(damaged, "hello")


def test_src_and_tgt_keep_their_form():
    prompt = Prompt((("a", "b"),), "c", "d", "x")
    assert (prompt.src, prompt.tgt) == (["a", "c"], ["b", "d"])
    assert (from_texts(["a"])[0].src, from_texts(["a"])[0].tgt) == ("a", "")


def test_the_program_of_the_engines_page_prints_an_answer(exported, capsys):
    page = (ROOT / "docs" / "engine.md").read_text()
    program = page.partition("```python\n")[2].partition("```")[0]
    exec(program.replace("output/exported", str(exported)), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 20 and lines[-1].startswith("first ") and lines[-1].endswith((" length", " stop"))


def test_the_last_line_counts_what_was_done_and_what_was_found_in_the_cache(exported, capsys):
    run(exported, "--batch_size", 1, "--block_size", 4, "--step_tokens", 8, "a" * 40, "a" * 40)
    summary = capsys.readouterr().err.splitlines()[-1]
    reused = r"(\d+) of (\d+) prompt tokens found in the cache"
    found = re.fullmatch(rf"prompts: 2; tokens: (\d+) in .* s, \d+ a second; steps: (\d+); {reused}", summary)
    tokens, steps, reused, of = map(int, found.groups())
    assert 2 <= tokens <= 8 and steps > 4 and 0 < of // 2 - 5 <= reused < of // 2

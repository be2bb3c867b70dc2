"""Conversations in tokens: the prompt is what training read, and cutting leaves what the template wrote."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.llama2_13b.data.chat_template import ChatTemplate
from examples.llama2_13b.data.samples import (
    IGNORED,
    Dropped,
    Example,
    describe_dropped,
    encode,
    encode_prompt,
    read_examples,
)
from examples.llama2_13b.data.tokenizer import Tokenizer
from examples.llama2_13b.generate import prompts
from examples.llama2_13b.generate.prompts import Prompt

BOS, EOS = 1, 2
SYSTEM = ChatTemplate("<s>Be brief.\n", "[INST] {{user}} [/INST]", " {{bot}} </s>")
TEMPLATES = {
    "none": None,
    "llama2": ChatTemplate("", "<s>[INST] {{user}} [/INST]", " {{bot}} </s>"),
    "system": SYSTEM,
    "no_control_tokens": ChatTemplate("Be brief.\n", "User: {{user}}\nBot:", " {{bot}}\n"),
    "end_before_newline": ChatTemplate("", "<s>{{user}}\n", "{{bot}}</s>\n"),
}
TURNS = (("one " * 9, "uno"), ("two " * 30, "dos"), ("three " * 5, "tres"))


@pytest.fixture(scope="module")
def tokenizer(tiny_folder):
    return Tokenizer.from_pretrained(tiny_folder)


def learned(sample):
    return [label for label in sample.labels if label != IGNORED]


@pytest.fixture(params=TEMPLATES)
def template(request):
    return TEMPLATES[request.param]


text = st.text(st.sampled_from("ab </s>[INST]pd类 \n"), max_size=60)
turns = st.lists(st.tuples(text, text.map(lambda one: one + "x")), min_size=1, max_size=4)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(turns, st.integers(26, 60), st.integers(61, 200), st.sampled_from(sorted(TEMPLATES)))
def test_a_prompt_is_what_training_read_before_the_last_target(tokenizer, said, src_length, max_length, name):
    """Whatever was cut: prediction gets the turns that training kept, and the same ids."""
    template = TEMPLATES[name]
    sample = encode(Example(tuple(said), "here"), tokenizer, src_length, max_length, template)
    kept = said[sample.dropped.turns :]
    prompt = encode_prompt(kept[:-1], kept[-1][0], tokenizer, src_length, template)
    assert [*sample.input_ids, sample.labels[-1]][: len(prompt)] == prompt
    assert sample.labels[len(prompt) - 2] == IGNORED or not template and len(prompt) == 1
    assert sample.labels[len(prompt) - 1] != IGNORED
    assert len(sample.input_ids) < max_length
    room = len(prompt)
    assert encode_prompt(said[:-1], said[-1][0], tokenizer, src_length, template, room) == prompt


def test_control_tokens_that_a_user_writes_are_text(tokenizer, template):
    said = (("</s><s> hi", "no </s>"), ("<pad>", "a </s><s>"))
    plain = tuple((question.replace("<", "("), answer.replace("<", "(")) for question, answer in said)
    for number in (BOS, EOS, 0):
        counts = []
        for conversation in (said, plain):
            sample = encode(Example(conversation, "here"), tokenizer, 100, 200, template)
            prompt = encode_prompt(list(conversation[:1]), conversation[1][0], tokenizer, 100, template)
            whole = [sample.input_ids[0], *sample.input_ids[1:], sample.labels[-1]]
            counts.append((whole.count(number), learned(sample).count(number), prompt.count(number)))
        assert counts[0] == counts[1]
    assert learned(sample).count(EOS) == 2


def test_begin_and_end_are_there_once_where_the_template_does_not_write_them(tokenizer):
    for name, begins in (
        ("no_control_tokens", 1),
        ("end_before_newline", 3),
        ("llama2", 3),
        ("system", 1),
        ("none", 3),
    ):
        sample = encode(Example(TURNS, "here"), tokenizer, 120, 256, TEMPLATES[name])
        assert sample.input_ids[0] == BOS and sample.input_ids.count(BOS) == begins
        assert learned(sample).count(EOS) == 3 and sample.dropped == Dropped()


def test_a_long_question_loses_words_and_no_bracket(tokenizer):
    words = " ".join(f"word{number}" for number in range(60))
    for src_length in (30, 31, 47):
        prompt = encode_prompt([], words, tokenizer, src_length, SYSTEM)
        begin, _, rest = tokenizer.decode(prompt).partition("[INST] ")
        question, _, end = rest.partition(" [/INST]")
        assert (begin, end) == ("Be brief.\n", "") and question and words.endswith(question)
        assert prompt[0] == BOS and src_length - 3 <= len(prompt) <= src_length


def test_a_question_is_cut_between_characters(tokenizer):
    for template in (None, SYSTEM):
        for src_length in range(30, 40):
            prompt = encode_prompt([], "类型裙颜色蓝" * 20, tokenizer, src_length, template)
            assert "\ufffd" not in tokenizer.decode(prompt) and len(prompt) <= src_length


def test_brackets_that_do_not_fit_are_an_error(tokenizer):
    with pytest.raises(
        ValueError, match=r"src_length must be at least \d+, the tokens of the chat template alone, got 5"
    ):
        encode_prompt([], "hello", tokenizer, 5, SYSTEM)


def test_the_system_text_stays_when_turns_go(tokenizer):
    whole = encode(Example(TURNS, "here"), tokenizer, 100, 250, SYSTEM)
    cut = encode(Example(TURNS, "here"), tokenizer, 100, len(whole) - 5, SYSTEM)
    assert (whole.dropped.turns, cut.dropped.turns) == (0, 1)
    for sample in (whole, cut):
        assert tokenizer.decode(sample.input_ids).startswith("Be brief.\n[INST] ")
        assert tokenizer.decode(sample.input_ids).count("Be brief.") == 1


def test_a_long_answer_loses_its_end_and_the_end_token(tokenizer):
    sample = encode(Example((("hi", "abcdefgh" * 20),), "here"), tokenizer, 40, 60, SYSTEM)
    assert len(sample) == 59 and EOS not in learned(sample)
    assert (" " + "abcdefgh" * 20).startswith(tokenizer.decode(learned(sample)))
    assert sample.dropped.target > 0 and sample.dropped.source == 0


def test_what_was_cut_is_counted(tokenizer):
    def sample(*said, src_length=20, max_length=60):
        return encode(Example(said, "here"), tokenizer, src_length, max_length)

    short, long = "a b c", "xyz" * 60
    source = len(tokenizer.encode(long)) + 1 - 20
    target = len(tokenizer.encode(long)) + 1 - (60 - 1 - len(tokenizer.encode(short)))
    samples = [
        sample((short, short)),
        sample((long, short)),
        sample((short, long)),
        sample((short, long), (short, short)),
    ]
    assert [one.dropped for one in samples] == [
        Dropped(), Dropped(source=source), Dropped(target=target), Dropped(turns=1)
    ]  # fmt: skip
    expected = f"3 of 4; left out {source} tokens of sources, {target} of targets, 1 turns"
    assert describe_dropped(samples) == expected
    assert describe_dropped(samples[:1]) == "0 of 1"


def test_turns_that_prediction_leaves_out_are_said(tokenizer, capsys):
    asked = [Prompt(TURNS[:2], TURNS[2][0], "", "prompt 1"), Prompt((), "x" * 60, "", "prompt 2")]
    encoded = prompts.encode(asked, tokenizer, SYSTEM, 80, 80, "80 positions are left")
    assert all(len(tokens) <= 80 and tokens[0] == BOS for tokens in encoded)
    assert (
        "1 sources were shortened (--src_length), 2 turns left out (80 positions are left)" in capsys.readouterr().err
    )
    prompts.encode(asked[1:], tokenizer, SYSTEM, 40, 80, "")
    assert "prompts: 1; 1 sources were shortened (--src_length), 0 turns" in capsys.readouterr().err
    prompts.encode(asked[1:], tokenizer, SYSTEM, None, 200, "")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("line", [("", ""), (" ", "\n"), (["a", ""], ["b", ""])])
def test_a_line_without_question_and_answer_is_refused(tmp_path, line):
    path = tmp_path / "train.json"
    path.write_text('{"src": "a", "tgt": "b"}\n' + json.dumps({"src": line[0], "tgt": line[1]}))
    with pytest.raises(ValueError, match="train.json:2: src and tgt must not both be empty"):
        read_examples([path])


@pytest.mark.parametrize("said", [(("a", ""),), (("a", " \n"),), (("a", "b"), ("c", ""), ("d", "e"))])
def test_an_answer_without_text_is_not_trained(tokenizer, said):
    turn = " of turn 2" if len(said) > 1 else ""
    with pytest.raises(ValueError, match=f"train.json:7: tgt{turn} must hold text to learn"):
        encode(Example(said, "train.json:7"), tokenizer, 20, 60)


def test_an_empty_question_may_have_an_answer(tokenizer):
    assert learned(encode(Example((("", "b"),), "here"), tokenizer, 20, 60))[-1] == EOS

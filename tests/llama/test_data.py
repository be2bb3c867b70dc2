"""Samples from lines: what is refused, what is learned, and how samples share rows."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.llama2_13b.data.chat_template import ChatTemplate
from examples.llama2_13b.data.order import Order
from examples.llama2_13b.data.packing import collate, pack_greedily, pack_sequentially
from examples.llama2_13b.data.sample_batches import SampleBatches
from examples.llama2_13b.data.samples import IGNORED, Example, Sample, encode, encode_prompt, read_examples, split_files
from examples.llama2_13b.data.tokenizer import Tokenizer
from tests.llama.conftest import DATA, EXAMPLE

BOS, EOS = 1, 2


@pytest.fixture(scope="module")
def tokenizer(tiny_folder):
    return Tokenizer.from_pretrained(tiny_folder)


def example(*turns):
    return Example(turns, "here")


def split_targets(sample):
    """(ids without the last, targets): what is read and what is learned."""
    return sample.input_ids, [label for label in sample.labels if label != IGNORED]


GOOD = '{"src": "a", "tgt": "b"}'


@pytest.mark.parametrize(
    "line, words",
    [
        ("{", "must be a JSON object"),
        ("[1]", "must be a JSON object, got list"),
        ("[" * 100_000, "must be a JSON object"),
        ("{}", 'must have "src" and "tgt", got no field'),
        ('{"src": "a"}', 'must have "src" and "tgt", got src'),
        ('{"src": 1, "tgt": "b"}', "src must be a text or a list of texts, got 1"),
        ('{"src": ["a"], "tgt": [2]}', "tgt must be a text or a list of texts"),
        ('{"src": [], "tgt": []}', "src must be a text or a list of texts"),
        ('{"src": "a", "tgt": ["b"]}', "must be both texts or both lists, got a text and a list"),
        ('{"src": ["a", "c"], "tgt": ["b"]}', "must have as many turns, got 2 and 1"),
        ('{"src": "a", "tgt": null}', "tgt must be a text or a list of texts, got null"),
        (b'{"src": "\xff", "tgt": "b"}', "must be a JSON object"),
        (r'{"src": ["a", "\ud800"], "tgt": ["b", "c"]}', r"src must be Unicode text, got '\ud800'"),
    ],
)
def test_a_bad_line_is_refused_with_file_and_line(tmp_path, line, words):
    content = line if isinstance(line, bytes) else line.encode()
    (tmp_path / "train.json").write_bytes(b"\n".join([GOOD.encode(), b"", content, GOOD.encode()]))
    with pytest.raises(ValueError, match="train.json:3: ") as error:
        read_examples(split_files(tmp_path, "train"))
    assert words in str(error.value)


def test_a_split_is_a_file_or_a_folder_of_files(tmp_path):
    (tmp_path / "train").mkdir()
    for name, source in (("b.json", "second"), ("a.jsonl", "first")):
        (tmp_path / "train" / name).write_text(json.dumps({"src": source, "tgt": ["x"][0]}))
    found = read_examples(split_files(tmp_path, "train"))
    assert [one.turns for one in found] == [(("first", "x"),), (("second", "x"),)]
    assert split_files(tmp_path, "dev") == []
    with pytest.raises(FileNotFoundError, match="must be a folder with train.json"):
        split_files(tmp_path / "nowhere", "train")


def test_the_shipped_data_is_read():
    train, dev = (read_examples(split_files(DATA, split)) for split in ("train", "dev"))
    assert len(train) >= 300 and len(dev) >= 20
    assert any(len(one.turns) > 1 for one in train)
    assert not {one.turns[0][0] for one in train} & {one.turns[0][0] for one in dev}


def test_source_is_read_and_target_with_its_end_is_learned(tokenizer):
    source, target = tokenizer.encode("type#mug"), tokenizer.encode("A mug.")
    sample = encode(example(("type#mug", "A mug.")), tokenizer, 50, 100)
    assert sample.input_ids == [BOS, *source, *target]
    assert sample.labels == [*[IGNORED] * len(source), *target, EOS]


def test_a_long_source_keeps_its_end_and_a_long_target_loses_end_and_eos(tokenizer):
    source, target = tokenizer.encode("abcdefgh" * 5), tokenizer.encode("ijklmnop" * 5)
    sample = encode(example(("abcdefgh" * 5, "ijklmnop" * 5)), tokenizer, 6, 12)
    assert split_targets(sample) == ([BOS, *source[-5:], *target[:5]], target[:6])


def test_a_target_that_just_fits_keeps_its_end(tokenizer):
    source, target = tokenizer.encode("abc"), tokenizer.encode("ijklm")
    room = 1 + len(source) + len(target)
    whole = encode(example(("abc", "ijklm")), tokenizer, 10, room + 1)
    assert split_targets(whole)[1] == [*target, EOS]
    cut = encode(example(("abc", "ijklm")), tokenizer, 10, room)
    assert split_targets(cut)[1] == target


def test_every_turn_is_kept_and_whole_turns_go_from_the_front(tokenizer):
    turns = (("one", "uno"), ("two", "dos"), ("three", "tres"))
    encoded = [([BOS, *tokenizer.encode(src)], [*tokenizer.encode(tgt), EOS]) for src, tgt in turns]
    lengths = [len(src) + len(tgt) for src, tgt in encoded]

    def expect(kept, max_length):
        sample = encode(example(*turns), tokenizer, 20, max_length)
        ids = [token for src, tgt in kept for token in src + tgt]
        assert split_targets(sample) == (ids[:-1], [token for _, tgt in kept for token in tgt])

    expect(encoded, sum(lengths))
    expect(encoded[1:], sum(lengths) - 1)
    expect(encoded[2:], lengths[2])


def test_a_chat_template_is_rendered_and_only_answers_are_learned(tokenizer):
    template = ChatTemplate("Be brief. ", "<s>[INST] {{user}} [/INST]", " {{bot}} </s>")
    sample = encode(example(("Hi", "Hello"), ("Bye", "So long")), tokenizer, 50, 200, template)
    first = tokenizer.encode("Be brief. <s>[INST] Hi [/INST]", special=True)
    answers = [tokenizer.encode(f" {text} </s>", special=True) for text in ("Hello", "So long")]
    second = tokenizer.encode("<s>[INST] Bye [/INST]", special=True)
    assert split_targets(sample) == ([BOS, *first, *answers[0], *second, *answers[1]][:-1], answers[0] + answers[1])
    assert answers[0][-1] == EOS and second[0] == BOS


def test_a_prompt_is_what_training_read_before_the_target(tokenizer):
    turns = (("one", "uno"), ("two", "dos"))
    for template in (None, ChatTemplate.from_json(EXAMPLE / "configs" / "llama2_chat.json")):
        sample = encode(example(*turns), tokenizer, 30, 200, template)
        prompt = encode_prompt(list(turns[:1]), "two", tokenizer, 30, template)
        assert sample.input_ids[: len(prompt)] == prompt
        assert sample.labels[len(prompt) - 2] == IGNORED and sample.labels[len(prompt) - 1] != IGNORED


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", "not JSON"),
        ("[]", "must be"),
        ('{"conversation": ["{{user}}"]}', "must be"),
        ('{"conversation": ["{{user", "{{bot}}"]}', "not a Jinja template"),
        ('{"conversation": ["{{name}}", "{{bot}}"]}', "not a Jinja template"),
        ('{"conversation": ["{{user}}", "nothing"]}', "must mention {{bot}}"),
    ],
)
def test_a_bad_chat_template_is_refused(tmp_path, content, words):
    path = tmp_path / "template.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="template.json") as error:
        ChatTemplate.from_json(path)
    assert words in str(error.value)


lengths_and_room = st.integers(1, 60).flatmap(
    lambda room: st.tuples(st.lists(st.integers(1, room), max_size=80), st.just(room))
)


@pytest.mark.parametrize("pack", [pack_sequentially, pack_greedily])
@settings(deadline=None, derandomize=True)
@given(lengths_and_room)
def test_packing_places_every_sample_once_and_fills_no_row_beyond_its_length(pack, lengths_and_room):
    lengths, room = lengths_and_room
    rows = pack(lengths, room)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    totals = [sum(lengths[number] for number in row) for row in rows]
    assert all(0 < total <= room for total in totals)
    assert all(a + b > room for a, b in zip(totals, totals[1:], strict=False)) or pack is pack_sequentially


def test_sequential_packing_keeps_the_order_and_greedy_packing_the_largest_free_space():
    assert pack_sequentially([4, 3, 5, 2, 8], 8) == [[0, 1], [2, 3], [4]]
    assert pack_greedily([4, 3, 5, 2, 8], 8) == [[4], [2, 3], [0, 1]]


def test_rows_of_a_batch_hold_documents_with_their_own_positions_and_ends():
    samples = [Sample([11, 12, 13], [IGNORED, 13, 2]), Sample([21, 22], [22, 2]), Sample([31], [2])]
    batch = collate([samples[:2], samples[2:]], 0, 6)
    assert batch.input_ids.tolist() == [[11, 12, 13, 21, 22, 0], [31, 0, 0, 0, 0, 0]]
    assert batch.labels.tolist() == [[-100, 13, 2, 22, 2, -100], [2, -100, -100, -100, -100, -100]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 0], [0, 0, 0, 0, 0, 0]]
    assert batch.startend_row_indices[:, 0, :, 0].tolist() == [[3, 3, 3, 5, 5, 6], [1, 6, 6, 6, 6, 6]]
    assert (batch.num_targets, batch.document_lengths) == (5, [3, 2, 1])
    assert batch.startend_row_indices.dtype == np.int32


def test_without_packing_rows_are_as_long_as_the_longest():
    samples = [Sample([1] * 3, [2] * 3), Sample([1] * 5, [2] * 5)]
    assert collate([samples[:1], samples[1:]], 0).input_ids.shape == (2, 5)


def test_every_epoch_holds_every_sample_once_in_an_order_of_its_own():
    samples = [Sample([number] * (3 + number % 7), [number] * (3 + number % 7)) for number in range(50)]
    batches = SampleBatches(samples, partial(pack_greedily, max_length=20))
    order = Order(batches, 3, seed=1)
    epochs = [order.epoch(number) for number in (0, 1)]
    for epoch in epochs:
        assert sorted(sample for step in epoch for row in step for sample in row) == list(range(50))
        assert all(len(step) == 3 for step in epoch[:-1])
    assert epochs[0] != epochs[1] and order.epoch(1) == epochs[1]
    assert order.count(2) == len(epochs[0]) + len(epochs[1])
    steps = order.steps()
    assert [next(steps) for _ in range(order.count(2))] == epochs[0] + epochs[1]
    assert Order(batches, 3, seed=2).epoch(0) != epochs[0]

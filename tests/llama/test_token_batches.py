"""Rows of token files against rows cut from a list of all tokens; splits; the order of an epoch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.llama2_13b.data.order import Order
from examples.llama2_13b.data.samples import IGNORED
from examples.llama2_13b.data.token_batches import TokenBatches, TokenRows, shares_of, split_documents
from examples.llama2_13b.data.token_files import TokenFiles
from tests.llama.test_token_files import megatron, write

VOCAB_SIZE = 512


def batches_of(prefix, length, first=0, stop=None, **more):
    files = TokenFiles(prefix)
    documents = range(first, files.num_documents if stop is None else stop)
    return TokenBatches([TokenRows(files, documents, length, VOCAB_SIZE)], **more)


def naive_rows(documents, length):
    """[(token, label, position, number of the document)] of each row, from one list of all tokens."""
    stream = [(token, number) for number, ids in enumerate(documents) for token in ids]
    rows = []
    for place, ((token, number), (label, following)) in enumerate(zip(stream, stream[1:], strict=False)):
        if place % length == 0:
            rows.append([])
        position = sum(other == number for *_, other in rows[-1])
        rows[-1].append((token, label if following == number else IGNORED, position, number))
    return rows


def check(batches, documents, length):
    """Every row of a batch is the naive one, and a token attends to its own document's part of the row alone."""
    expected = naive_rows(documents, length)
    assert len(batches) == len(expected) and list(batches.rows()) == list(range(len(expected)))
    (batch,) = batches.of(batches.rows(), max(1, len(expected)), 1) if expected else [None]
    for number, row in enumerate(expected):
        tokens, labels, positions, numbers = map(list, zip(*row, strict=True))
        padding = length - len(row)
        assert padding == 0 or row is expected[-1]
        assert batch.input_ids[number].tolist() == tokens + [7] * padding
        assert batch.labels[number].tolist() == labels + [IGNORED] * padding
        assert batch.position_ids[number].tolist() == positions + [0] * padding
        ends = [max(place for place, other in enumerate(numbers) if other == each) + 1 for each in numbers]
        assert batch.startend_row_indices[number, 0, :, 0].tolist() == ends + [length] * padding
    if expected:
        assert sum(batch.document_lengths) == sum(map(len, expected))


drawn = st.lists(st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=25), min_size=1, max_size=20)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(drawn, st.integers(2, 30), st.data())
def test_rows_are_those_of_one_stream_cut_at_equal_lengths(tmp_path_factory, documents, length, data):
    prefix = write(tmp_path_factory.mktemp("drawn") / "all", documents)
    first = data.draw(st.integers(0, len(documents)))
    stop = data.draw(st.integers(first, len(documents)))
    batches = batches_of(prefix, length, first, stop, pad_token_id=7)
    check(batches, documents[first:stop], length)
    assert batches.parts[0].num_tokens == sum(map(len, documents[first:stop]))


@settings(deadline=None, derandomize=True, max_examples=50)
@given(
    st.lists(st.lists(st.lists(st.integers(0, 99), max_size=4), max_size=3), min_size=1, max_size=15), st.integers(2, 9)
)
def test_documents_that_are_empty_or_of_several_sequences_make_the_same_rows(tmp_path_factory, documents, length):
    documents.append([[1]])
    prefix = megatron(tmp_path_factory.mktemp("theirs") / "all", documents)
    joined = [[token for ids in document for token in ids] for document in documents]
    check(batches_of(prefix, length, pad_token_id=7), joined, length)


@settings(deadline=None, derandomize=True, max_examples=50)
@given(drawn, st.integers(2, 12), st.integers(1, 5))
def test_every_token_is_seen_once_an_epoch(tmp_path_factory, documents, length, rows_per_step):
    """The last token of all is a label alone."""
    batches = batches_of(write(tmp_path_factory.mktemp("epoch") / "all", documents), length)
    stream = [token for ids in documents for token in ids]
    order = Order(batches, rows_per_step, seed=3)
    for epoch in (0, 1):
        rows = [int(row) for step in order.epoch(epoch) for row in step]
        assert sorted(rows) == list(range(len(batches)))
        seen, learned = {}, 0
        for row in rows:
            (batch,) = batches.of([row], 1, 1)
            count = sum(batch.document_lengths)
            seen[row] = batch.input_ids[0, :count].tolist()
            learned += batch.num_targets
        assert [token for row in sorted(seen) for token in seen[row]] == stream[:-1]
        assert learned == sum(len(ids) - 1 for ids in documents)


def test_the_order_is_the_seeds_and_the_epochs(tmp_path):
    prefix = write(tmp_path / "all", [[number] * 20 for number in range(50)])

    def order(seed, epoch):
        return [row for step in Order(batches_of(prefix, 10), 3, seed).epoch(epoch) for row in step]

    assert order(1, 0) == order(1, 0) != order(1, 1)
    assert order(2, 0) != order(1, 0) and sorted(order(2, 0)) == sorted(order(1, 0)) == list(range(100))
    assert Order(batches_of(prefix, 10), 3, 1).count(2) == 2 * 34


def test_a_limited_evaluation_looks_all_over_the_split(tmp_path):
    prefix = write(tmp_path / "all", [list(range(101))])
    assert list(batches_of(prefix, 10, limit=4).rows()) == [0, 2, 5, 7]
    assert (
        list(batches_of(prefix, 10, limit=10).rows())
        == list(batches_of(prefix, 10, limit=99).rows())
        == list(range(10))
    )


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.lists(drawn, min_size=2, max_size=4), st.integers(2, 12))
def test_rows_of_several_files_follow_each_other(tmp_path_factory, files, length):
    folder = tmp_path_factory.mktemp("several")
    apart = [batches_of(write(folder / str(number), each), length) for number, each in enumerate(files)]
    together = TokenBatches([part for batches in apart for part in batches.parts])
    expected = [ids for batches in apart for ids in inputs(batches)]
    assert inputs(together) == expected and len(together) == sum(map(len, apart))
    assert sorted(together.shuffled(1, 0)) == list(range(len(expected)))
    fingerprints = {TokenBatches(parts).fingerprint() for parts in (together.parts, together.parts[:1])}
    assert len(fingerprints) == 2


def inputs(batches):
    return [batch.input_ids.tolist() for batch in batches.of(batches.rows(), 1, 1)]


def test_rows_are_padded_to_a_multiple(tmp_path):
    batches = batches_of(write(tmp_path / "all", [[5] * 30]), 7)
    shapes = [batch.input_ids.shape for batch in batches.of(batches.rows(), 3, 4)]
    assert shapes == [(3, 8), (2, 8)]


@pytest.mark.parametrize("letter, code, wrong", [("H", 8, 512), ("i", 4, -1)])
def test_a_token_beyond_the_vocabulary_is_named_with_its_place(tmp_path, letter, code, wrong):
    prefix = megatron(tmp_path / "theirs", [[[1, 2, 3]], [[4, wrong]]], code, letter)
    with pytest.raises(ValueError, match=f"theirs.bin: token 4 must be below the model's vocab_size 512, got {wrong}"):
        list(batches_of(prefix, 2).of([0, 1], 2, 1))


@pytest.mark.parametrize(
    "split, count, expected",
    [
        ("949,50,1", 1000, (949, 50, 1)),
        ("949,50,1", 10, (9, 1, 0)),
        ("1", 7, (7, 0, 0)),
        ("0.5, 0.5", 7, (4, 3, 0)),
        ("98,2,0", 0, (0, 0, 0)),
        ("1,1,1", 10**12, (333333333333, 333333333334, 333333333333)),
    ],
)
def test_a_split_is_at_borders_of_documents(split, count, expected):
    parts = split_documents(shares_of(split), count)
    assert tuple(map(len, parts)) == expected
    assert [part.start for part in parts] == [0, parts[0].stop, parts[1].stop] and parts[2].stop == count


@pytest.mark.parametrize("split", ["", "a", "1,,1", "0,1,1", "1,-1", "1,1,1,1", "nan", "inf,1", "1;2"])
def test_other_splits_are_none(split):
    assert shares_of(split) is None


def test_rows_of_a_large_file_are_found_without_reading_it(tmp_path):
    """A sparse file of 300 million tokens in 1,000 documents; a row in its middle."""
    prefix, size = tmp_path / "large", 300_000
    write(prefix, [[1]])
    index = np.zeros(1, "S9,<u8,u1,<u8,<u8")
    index[0] = (b"MMIDIDX", 1, 8, 1000, 1001)
    pointers = np.arange(1000, dtype="<i8") * size * 2
    parts = (index, np.full(1000, size, "<i4"), pointers, np.arange(1001, dtype="<i8"))
    (tmp_path / "large.idx").write_bytes(b"".join(part.tobytes() for part in parts))
    with (tmp_path / "large.bin").open("r+b") as file:
        file.truncate(1000 * size * 2)
        file.seek(2 * (500 * size - 2))
        file.write(np.array([8, 9, 1, 3], "<u2").tobytes())
    batches = batches_of(prefix, 4096)
    (batch,) = batches.of([(500 * size - 2) // 4096], 1, 1)
    place = (500 * size - 2) % 4096
    assert batch.input_ids[0, place : place + 4].tolist() == [8, 9, 1, 3]
    assert batch.labels[0, place - 1 : place + 3].tolist() == [8, 9, IGNORED, 3]
    assert batch.document_lengths == [place + 2, 4096 - place - 2]
    assert len(batches.fingerprint()) == 16

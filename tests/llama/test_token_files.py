"""Token files: what is written is read, Megatron's files are, and what is not whole is refused."""

from __future__ import annotations

import json
import os
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.llama2_13b.data import token_files
from examples.llama2_13b.data.token_files import TokenFiles

DOCUMENTS = [[1, 300, 2], [1, 2], [1, 5, 6, 7, 2]]


def write(prefix, documents, vocab_size=512):
    with token_files.writer(prefix, vocab_size, b"tokenizer") as writer:
        for ids in documents:
            writer.add(ids)
    return prefix


def documents_of(files):
    borders = [files.start(number) for number in range(files.num_documents + 1)]
    return [files.read(*pair).tolist() for pair in zip(borders, borders[1:], strict=False)]


def megatron(prefix, documents, code=8, letter="H", modes=b""):
    """The format as Megatron-LM's indexed_dataset.py describes it, by struct alone: documents of several sequences."""
    sequences = [sequence for document in documents for sequence in document]
    content = b"".join(struct.pack(f"<{len(ids)}{letter}", *ids) for ids in sequences)
    index = b"MMIDIDX\x00\x00" + struct.pack("<Q", 1) + struct.pack("<B", code)
    index += struct.pack("<Q", len(sequences)) + struct.pack("<Q", len(documents) + 1)
    index += b"".join(struct.pack("<i", len(ids)) for ids in sequences)
    place = 0
    for ids in sequences:
        index += struct.pack("<q", place)
        place += len(ids) * struct.calcsize(letter)
    number = 0
    for document in [[], *documents]:
        number += len(document)
        index += struct.pack("<q", number)
    prefix.with_name(f"{prefix.name}.bin").write_bytes(content)
    prefix.with_name(f"{prefix.name}.idx").write_bytes(index + modes)
    return prefix


@pytest.mark.parametrize(
    "vocab_size, code, letter", [(512, 8, "H"), (65499, 8, "H"), (65500, 4, "i"), (128256, 4, "i")]
)
def test_files_are_megatrons_to_the_byte(tmp_path, vocab_size, code, letter):
    ours = write(tmp_path / "ours", [*DOCUMENTS, [vocab_size - 1]], vocab_size)
    megatron(tmp_path / "theirs", [*([ids] for ids in DOCUMENTS), [[vocab_size - 1]]], code, letter)
    for ending in ("bin", "idx"):
        assert (tmp_path / f"ours.{ending}").read_bytes() == (tmp_path / f"theirs.{ending}").read_bytes()
    assert documents_of(TokenFiles(ours)) == [*DOCUMENTS, [vocab_size - 1]]


@pytest.mark.parametrize(
    "code, letter", [(1, "B"), (2, "b"), (3, "h"), (4, "i"), (5, "q"), (8, "H"), (9, "I"), (10, "Q")]
)
def test_files_of_other_programs_are_read(tmp_path, code, letter):
    """Documents of several sequences, of none and of empty ones, in every integer dtype."""
    documents = [[[1, 3, 2]], [[1, 4], [5, 2], [9]], [], [[]], [[7]]]
    files = TokenFiles(megatron(tmp_path / "theirs", documents, code, letter))
    assert documents_of(files) == [[1, 3, 2], [1, 4, 5, 2, 9], [], [], [7]]
    assert (files.num_documents, files.num_tokens, files.about) == (5, 9, {})


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.lists(st.lists(st.integers(0, 511), max_size=9), min_size=1, max_size=30), st.integers(1, 5))
def test_an_index_longer_than_a_chunk_is_written_and_read(tmp_path_factory, documents, chunk):
    documents.append([1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_files, "CHUNK", chunk)
        files = TokenFiles(write(tmp_path_factory.mktemp("chunks") / "all", documents))
    assert documents_of(files) == documents


def spoil(path, change):
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    "ending, change, words",
    [
        ("idx", lambda all: all[:10], r"idx: must begin with b'MMIDIDX\x00\x00', the index of Megatron's format"),
        ("idx", lambda all: b"TNTIDX\x00\x00\x00" + all[9:], r"must begin with b'MMIDIDX\x00\x00'"),
        ("idx", lambda all: all[:9] + b"\x02" + all[10:], "idx: must be of version 1, got 2"),
        ("idx", lambda all: all[:17] + b"\x07" + all[18:], "must be of integer tokens, with a dtype code among 1, 2"),
        ("idx", lambda all: all[:-1], "must be 102 bytes long, for 3 sequences and 4 borders of documents, got 101"),
        ("idx", lambda all: all + b"\x00" * 3, "got 105; it is truncated, or has modes of a multimodal data set"),
        ("idx", lambda all: all[:34] + b"\x04" + all[35:], "must be of sequences that follow each other"),
        ("idx", lambda all: all[:34] + b"\xff" * 4 + all[38:], "must be of sequences that follow each other"),
        ("idx", lambda all: all[:-8] + b"\x02" + all[-7:], "must be of documents that ascend from sequence 0 to 3"),
        ("idx", lambda all: all[:-16] + b"\x09" + all[-15:], "must be of documents that ascend from sequence 0 to 3"),
        ("idx", lambda all: all[:18] + bytes(16), "must be of at least one document, got none"),
        ("bin", lambda all: all[:-1], "bin: must be 20 bytes long by all.idx, got 19"),
        ("bin", lambda all: all + b"\x00", "bin: must be 20 bytes long by all.idx, got 21"),
        ("about.json", lambda all: b"[]", "about.json: must be a JSON object"),
    ],
)
def test_what_is_not_whole_is_named(tmp_path, ending, change, words):
    prefix = write(tmp_path / "all", DOCUMENTS)
    spoil(tmp_path / f"all.{ending}", change)
    with pytest.raises(ValueError) as error:
        _ = TokenFiles(prefix).about
    assert words in str(error.value)


@pytest.mark.parametrize("ending", ["bin", "idx"])
def test_a_missing_file_is_named(tmp_path, ending):
    prefix = write(tmp_path / "all", DOCUMENTS)
    (tmp_path / f"all.{ending}").unlink()
    with pytest.raises(FileNotFoundError, match=rf"all\.{ending}: not found; token files are a pair"):
        TokenFiles(prefix)


def test_a_fingerprint_is_of_tokens_borders_and_checksum(tmp_path):
    def fingerprint(name, documents):
        return TokenFiles(write(tmp_path / name, documents)).fingerprint

    first = fingerprint("first", DOCUMENTS)
    assert fingerprint("again", DOCUMENTS) == first
    assert fingerprint("a token", [*DOCUMENTS[:2], [1, 5, 6, 8, 2]]) != first
    assert fingerprint("a border", [[1, 300], [2, 1, 2], DOCUMENTS[2]]) != first
    theirs = [TokenFiles(megatron(tmp_path / str(last), [[ids] for ids in [[1, 2], [3, last]]])) for last in (4, 5)]
    assert theirs[0].fingerprint != theirs[1].fingerprint


def test_a_fingerprint_reads_a_part_of_a_large_file_and_differs_by_the_checksum(tmp_path, monkeypatch):
    """What lies between the places that are read is in the checksum."""
    monkeypatch.setattr(token_files, "SAMPLED", 2)
    monkeypatch.setattr(token_files, "SAMPLE", 8)
    documents = [[1] * 500, [1] * 500]
    one, other = documents, [[1] * 300 + [5] * 200, [1] * 500]
    ours = [TokenFiles(write(tmp_path / f"ours {number}", each)) for number, each in enumerate((one, other))]
    assert ours[0].fingerprint != ours[1].fingerprint
    theirs = [
        megatron(tmp_path / f"theirs {number}", [[ids] for ids in each]) for number, each in enumerate((one, other))
    ]
    assert len({TokenFiles(prefix).fingerprint for prefix in theirs}) == 1


def test_nothing_is_left_of_files_that_were_not_finished(tmp_path):
    with pytest.raises(ZeroDivisionError), token_files.writer(tmp_path / "all", 512, b"") as writer:
        writer.add([1, 2])
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device.*all\.bin"):
        write(tmp_path / "all", DOCUMENTS)
    assert not list(tmp_path.iterdir())


def test_what_is_said_of_the_tokens(tmp_path):
    files = TokenFiles(write(tmp_path / "all", DOCUMENTS))
    assert files.about == json.loads((tmp_path / "all.about.json").read_text())
    assert (files.about["documents"], files.about["tokens"], files.about["vocab_size"]) == (3, 10, 512)
    content = np.array([token for ids in DOCUMENTS for token in ids], "<u2").tobytes()
    assert files.about["tokens_sha256"] == token_files.checksum(content)

"""Files of safetensors that ranks fill together, against the library and zlib."""

from __future__ import annotations

import json
import os
import zlib

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from examples.llama2_13b.bench.load_memory import CONFIG, read_as, write_sparse
from examples.llama2_13b.folders.safetensors_folder import Reader
from examples.llama2_13b.folders.safetensors_layout import Layout, Stored
from examples.llama2_13b.folders.safetensors_writer import BLOCK, Files, Piece
from examples.llama2_13b.io import crc32
from examples.llama2_13b.parallel.writers import Writers
from examples.llama2_13b.train.training_state import TrainingState, verify
from fusionkit.parallel.parity import run_ranks
from fusionkit.parallel.parts import own_part

WORDS = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16", np.dtype(ml_dtypes.bfloat16): "BF16"}
DTYPES = {"norm": np.float32, "rows": ml_dtypes.bfloat16, "columns": np.float32, "é": np.float16, "few": np.float32}
SHAPES = {"norm": (7,), "rows": (33, 5), "columns": (31, 17), "é": (2, 3), "few": (1, 8)}
AXES = {"norm": None, "rows": 0, "columns": 1, "é": 1, "few": 0}


def tensors():
    random = np.random.default_rng(0)
    return {name: random.normal(size=shape).astype(DTYPES[name]) for name, shape in SHAPES.items()}


def layout(values):
    return Layout({name: Stored(WORDS[value.dtype], value.shape) for name, value in values.items()})


def pieces(values, rank, size):
    for name, value in values.items():
        axis = AXES[name]
        place = tuple(own_part(n, rank, size) if each == axis else slice(0, n) for each, n in enumerate(value.shape))
        if axis is not None or rank == 0:
            yield Piece(name, value[place], place)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_any_number_of_ranks_writes_the_librarys_bytes(tmp_path, size):
    values = tensors()
    save_file(values, tmp_path / "theirs", metadata={"format": "pt"})

    def write(rank, communicator):
        files = Files(tmp_path, ["ours"], [layout(values)], Writers((communicator if size > 1 else None,)))
        files.write(pieces(values, rank, size))
        return files.finish()

    sums = run_ranks(size, write) if size > 1 else [write(0, None)]
    content = (tmp_path / "ours").read_bytes()
    assert content == (tmp_path / "theirs").read_bytes()
    assert sums == [{"ours": zlib.crc32(content)}] * size
    assert load_file(tmp_path / "ours").keys() == values.keys()


def test_a_file_has_the_sum_of_zlib_however_it_is_divided():
    content = np.random.default_rng(1).bytes(1000)
    for ends in ([], [1], [999], [1, 2, 500], list(range(1, 1000, 7))):
        parts = zip([0, *ends], [*ends, 1000], strict=True)
        total = 0
        for start, end in parts:
            total ^= crc32.of_part(content[start:end], 1000 - end)
        assert crc32.of_file(total, 1000) == zlib.crc32(content)
    for length in (0, 1, 2**33):  # of zeros, which add nothing
        assert length > 2**32 or crc32.of_file(0, length) == zlib.crc32(bytes(length))
        assert crc32.of_file(0, length) == crc32.of_file(crc32.of_part(bytes(5), 3), length)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_readers_verify_a_part_of_every_file_each(tmp_path, size):
    """A bit that is flipped in any part is told by all."""
    content = np.random.default_rng(3).bytes(1000)
    (tmp_path / "one").write_bytes(content)
    (tmp_path / "short").write_bytes(b"s")
    sums = {path.name: f"{zlib.crc32(path.read_bytes()):08x}" for path in tmp_path.iterdir()}
    state = TrainingState(1, "data", {}, {}, checksums=sums)

    def told(rank, communicator):
        try:
            verify(tmp_path, state, Writers((communicator,)))
        except ValueError as error:
            return str(error)

    assert run_ranks(size, told) == [None] * size
    for place in (0, 334, 600, 999):
        wrong = bytearray(content)
        wrong[place] ^= 1
        (tmp_path / "one").write_bytes(wrong)
        rule = f"one: must have the CRC-32 {sums['one']}, as trainer_state.json says, got {zlib.crc32(wrong):08x}; "
        assert all(rule in answer for answer in run_ranks(size, told))


def test_a_large_piece_is_summed_in_blocks(tmp_path):
    values = {"columns": np.random.default_rng(2).random((BLOCK // 64 + 9, 17), np.float32)}
    files = Files(tmp_path, ["one"], [layout(values)], Writers())
    files.write(pieces(values, 0, 1))
    assert files.finish() == {"one": zlib.crc32((tmp_path / "one").read_bytes())}
    np.testing.assert_array_equal(load_file(tmp_path / "one")["columns"], values["columns"])


def test_what_the_system_writes_and_reads_in_small_parts_is_whole(tmp_path, monkeypatch):
    values, pwrite, preadv = tensors(), os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda file, content, offset: pwrite(file, content[:5], offset))
    monkeypatch.setattr(os, "preadv", lambda file, runs, offset: preadv(file, [runs[0][:3]], offset))
    files = Files(tmp_path, ["model.safetensors"], [layout(values)], Writers())
    files.write(pieces(values, 0, 1))
    assert files.finish() == {"model.safetensors": zlib.crc32((tmp_path / "model.safetensors").read_bytes())}
    for name, value in values.items():
        found = Reader(tmp_path, "model").read(name, tuple(slice(0, n) for n in value.shape))
        np.testing.assert_array_equal(found, value.astype(np.float32))


def test_a_piece_that_does_not_fill_its_place_is_refused(tmp_path):
    files = Files(tmp_path, ["one"], [layout(tensors())], Writers())
    with pytest.raises(ValueError, match="norm: a piece must be 28 bytes, got 24"):
        files.write([Piece("norm", np.ones(6, np.float32), (slice(0, 7),))])


@pytest.mark.parametrize("size", [1, 2, 3, 40])
def test_a_rank_reads_its_own_part(tmp_path, size):
    values = tensors()
    save_file(values, tmp_path / "model.safetensors", metadata={"format": "pt"})
    reader = Reader(tmp_path, "model")
    for rank in range(size):
        for piece in pieces(values, rank, size):
            found = reader.read(piece.tensor, piece.place)
            assert found.dtype == np.float32 and found.flags.c_contiguous
            np.testing.assert_array_equal(found, piece.value.astype(np.float32))


@pytest.mark.parametrize("degree", [1, 8])
def test_reading_holds_a_few_copies_of_the_largest_part(tmp_path, degree):
    """Of 540 MB of parameters in float32, half of that on disk, where nobody wrote a value."""
    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "vocab_size": 16000}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8}
    (tmp_path / "config.json").write_text(json.dumps(json.loads(CONFIG.read_text()) | sizes | heads))
    folder = tmp_path / "folder"
    folder.mkdir()
    assert write_sparse(folder, tmp_path / "config.json") > 250e6
    assert sum(512 * path.stat().st_blocks for path in folder.iterdir()) < 1e6
    found = read_as(folder, degree - 1, degree)
    largest = 4 * 16000 * 1024 / degree
    assert found["parameters"] == pytest.approx(4 * 135.5e6 / degree, rel=0.01)
    assert found["peak"] < 3 * largest + 16e6

"""A disk that fails for one rank: all ranks end with its error, nothing new stays, and what was there is whole."""

from __future__ import annotations

import errno
import json
import os
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest

from examples.llama2_13b.folders import checkpoint, safetensors_folder
from examples.llama2_13b.folders.safetensors_layout import Layout, Stored
from examples.llama2_13b.folders.safetensors_writer import Files, Piece
from examples.llama2_13b.io import atomic
from examples.llama2_13b.model import Llama
from examples.llama2_13b.parallel.degrees import Degrees
from examples.llama2_13b.parallel.mesh import Mesh
from examples.llama2_13b.parallel.writers import Writers
from examples.llama2_13b.train import training_state
from fusionkit.parallel.parity import run_ranks
from tests.llama.meshes import on_mesh
from tests.llama.test_pipeline import Run
from tests.llama.test_sft import weights

OTHER = "another process could not write its part, and says why"
# What fails, and on which of two ranks.
FAILURES = {"the files": ("_make", 0), "a part": ("write", 1), "the index": ("finish", 0)}


def fail(monkeypatch, what):
    """From now on the disk is full for one rank, there."""
    name, rank = FAILURES[what]
    owner = checkpoint if name == "finish" else Files
    work = getattr(owner, name)

    def full(first, *arguments):
        if name == "finish" or first._writers.rank == rank:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return work(first, *arguments)

    monkeypatch.setattr(owner, name, full)


def error_of(work):
    try:
        work()
    except OSError as error:
        return str(error)
    return None


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("what", FAILURES)
def test_a_model_stays_as_it_was(tiny_folder, tmp_path, monkeypatch, what):
    def save(mesh, folder=tmp_path / "model"):
        model = Llama.from_pretrained(tiny_folder, shards=mesh.tensor)
        return error_of(lambda: model.save_pretrained(folder))

    monkeypatch.setattr("examples.llama2_13b.model.llama.paddle.LazyGuard", threading.Lock)  # one for all threads
    assert on_mesh(Degrees(tensor=2), save) == [None, None]
    before = content(tmp_path / "model")
    with monkeypatch.context() as patch:
        fail(patch, what)
        errors = on_mesh(Degrees(tensor=2), save)
    failed = FAILURES[what][1]
    assert "No space left on device" in errors[failed] and OTHER in errors[1 - failed]
    if what != "the index":  # its files are told of, and replaced by the next save
        assert content(tmp_path / "model") == before
    assert weights(tmp_path / "model").keys() == weights(tiny_folder).keys()
    assert on_mesh(Degrees(tensor=2), save) == [None, None]
    assert len(content(tmp_path / "model")) == len(before)


@pytest.mark.parametrize("what", [*FAILURES, "the folder"])
def test_a_checkpoint_is_whole_or_not_there(tiny_folder, tmp_path, monkeypatch, what):
    def save(mesh):
        run = Run(tiny_folder, mesh).train(1, count=2)
        run.save(tmp_path / "checkpoint-1")
        with lock:
            if not failing:
                failing.append(fail(monkeypatch, what) if what in FAILURES else make_a_file())
        mesh.any_process(False)
        return error_of(lambda: run.save(tmp_path / "checkpoint-2"))

    def make_a_file():
        monkeypatch.setattr(
            atomic, "temporary_of", lambda path: tmp_path / "checkpoint-1" / "config.json" / "in_a_file"
        )

    lock, failing = threading.Lock(), []
    errors = on_mesh(Degrees(sharding=2), save)
    failed = FAILURES.get(what, ("", 0))[1]
    assert OTHER not in errors[failed] and OTHER in errors[1 - failed]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    training_state.verify(folder := tmp_path / "checkpoint-1", training_state.load(folder), Writers())


def test_a_rank_that_fails_late_removes_nothing_of_the_first(tmp_path):
    """The first may have made the files the folder's by then."""

    def work(rank, communicator):
        files = Files(tmp_path, ["one"], [Layout({"x": Stored("F32", (2, 3))})], Writers((communicator,)))
        if rank == 1:
            files.discard()
        communicator.barrier()
        return (tmp_path / "one").exists()

    assert run_ranks(2, work) == [True, True]


def test_the_bytes_are_on_the_disk_before_a_folder_has_its_name(tmp_path, monkeypatch):
    """And its name before what it replaces goes, else a power cut could leave neither."""
    done = []

    def watched(name, path_of):
        call = getattr(os, name)

        def watch(first, *rest):
            done.append((name, path_of(first)))
            return call(first, *rest)

        monkeypatch.setattr(os, name, watch)

    watched("fsync", lambda descriptor: Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
    for name in ("rename", "replace", "unlink"):
        watched(name, lambda path: Path(path).name)
    with atomic.new_folder(tmp_path / "new") as folder:
        files = Files(folder, ["part"], [Layout({"x": Stored("F32", (1,))})], Writers())
        files.write([Piece("x", np.ones(1, np.float32), (slice(0, 1),))])
        (folder / "other").touch()
    assert done[0] == ("fsync", "part")  # by the rank that wrote it, perhaps on another host
    assert set(done[1:3]) == {("fsync", "part"), ("fsync", "other")}
    assert done[3:] == [("fsync", ".new.saving"), ("rename", ".new.saving"), ("fsync", tmp_path.name)]
    done.clear()
    (tmp_path / "model-00001-of-00001.safetensors").touch()
    safetensors_folder.write_index(tmp_path, "model", {})
    index = ".model.safetensors.index.json.saving"
    assert done[:4] == [("fsync", index), ("replace", index), ("unlink", index), ("fsync", tmp_path.name)]
    assert done[4:] == [("unlink", "model-00001-of-00001.safetensors")]


def test_a_run_that_is_given_up_waits_for_a_piece_and_not_for_all(tiny_folder, tmp_path, monkeypatch):
    """A killed process ends the others at once, and a second Ctrl-C means now."""
    run, begun, going_on = Run(tiny_folder, Mesh()).train(1, count=2), threading.Event(), threading.Event()
    write, written = Files.write, []

    def slow(files, pieces):
        def one_by_one():
            for piece in pieces:
                written.append(piece.tensor)
                begun.set()
                assert going_on.wait(60)
                yield piece

        return write(files, one_by_one())

    monkeypatch.setattr(Files, "write", slow)
    saving = training_state.Saving(
        tmp_path / "checkpoint-1", run.mesh, run.model, run.optimizer, {}, {"step": 1, "data": "", "flags": {}}, True
    )
    assert begun.wait(60)
    threading.Timer(0.2, going_on.set).start()
    saving.discard()
    assert len(written) == 1 and not list(tmp_path.iterdir())


def test_the_writers_of_a_grid_are_numbered_in_the_order_of_its_axes():
    """As many as the product of the axes; what they gather is in that order."""
    found = on_mesh(Degrees(data=2, pipeline=2, tensor=2), lambda mesh: described(mesh.writers))
    assert [rank for rank, _, _, _ in found] == [0, 1, 2, 3] * 2  # data is the outermost, and apart
    assert all(first == (rank == 0) and size == 4 for rank, first, size, _ in found)
    assert all(gathered == [[0, 7], [1, 7], [2, 7], [3, 7]] for _, _, _, gathered in found)
    assert described(Writers()) == (0, True, 1, [[0, 7]])


def described(writers):
    return writers.rank, writers.is_first, writers.size, writers.gather([writers.rank, 7]).tolist()


def test_an_older_checkpoint_without_checksums_is_accepted_by_several(tmp_path):
    state = {"step": 1, "data": "", "flags": {}, "optimizer": dict.fromkeys(("beta1_pow_acc", "beta2_pow_acc"), 0.5)}
    (tmp_path / training_state.STATE).write_text(json.dumps(state))
    state = training_state.load(tmp_path)
    assert run_ranks(2, lambda rank, one: training_state.verify(tmp_path, state, Writers((one,)))) == [None, None]


def test_every_reader_names_the_file_that_one_of_them_finds_changed(tmp_path):
    content = np.random.default_rng(0).bytes(1000)
    for name in "ab":
        (tmp_path / name).write_bytes(content)
    checksums = dict.fromkeys("ab", f"{zlib.crc32(content):08x}")
    state = training_state.TrainingState(1, "", {}, {}, checksums=checksums)

    def verify(rank, communicator):
        try:
            return training_state.verify(tmp_path, state, Writers((communicator,)))
        except ValueError as error:
            return str(error)

    assert run_ranks(3, verify) == [None] * 3
    (tmp_path / "b").write_bytes(content[:500] + b"x" + content[501:])  # the second one's part
    for told in run_ranks(3, verify):
        assert told.startswith(f"{tmp_path / 'b'}: must have the CRC-32") and f"Remove {tmp_path} to resume" in told


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path):
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-2", "checkpoint-11.copy", "checkpoint-x"):
        (tmp_path / name).mkdir()
    for name in (".checkpoint-12.saving", ".checkpoint-13.saving"):
        (tmp_path / name).mkdir()

    def names():
        return sorted(path.name for path in tmp_path.iterdir())

    assert [path.name for path in training_state.checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in (2, 9, 10)]
    training_state.remove_unfinished(tmp_path)
    training_state.keep_newest(tmp_path, 2)
    assert names() == ["checkpoint-10", "checkpoint-11.copy", "checkpoint-9", "checkpoint-x"]
    training_state.keep_newest(tmp_path, 5)
    assert len(names()) == 4

"""A small model folder, made once: random weights and a tokenizer trained on the shipped data."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from examples.llama2_13b.create import CreateFlags, create
from examples.llama2_13b.sft import SftFlags
from examples.llama2_13b.train import loss_curve, metrics

EXAMPLE = Path(__file__).parents[2] / "examples" / "llama2_13b"
DATA = EXAMPLE / "texts"


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    create(CreateFlags(str(EXAMPLE / "configs" / "tiny.json"), str(DATA), str(folder)))
    return folder


@pytest.fixture(scope="session")
def few_samples(tmp_path_factory):
    """A part of the shipped data: a short run spends most of its time on reading and evaluating all of it."""
    folder = tmp_path_factory.mktemp("few")
    for split, count in (("train", 200), ("dev", 16)):
        lines = (DATA / f"{split}.json").read_text(encoding="utf-8").splitlines()[:count]
        (folder / f"{split}.json").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def no_measuring(monkeypatch):
    """Half a second less for each run."""
    monkeypatch.setattr(metrics, "measure_peak_flops", lambda dtype: 1e11)


@pytest.fixture
def no_drawing(monkeypatch):
    """An empty file in place of the loss curve, which takes a third of a run of six steps."""
    monkeypatch.setattr(loss_curve, "draw", lambda log, path, title: path.touch())


@pytest.fixture
def sft_flags(tiny_folder, few_samples, tmp_path):
    """Flags of a short run, with changes."""

    def make(**changes):
        values = {
            "model_name_or_path": str(tiny_folder),
            "dataset_name_or_path": str(few_samples),
            "output_dir": str(tmp_path / "run"),
            "src_length": 100,
            "max_length": 256,
            "zero_padding": True,
            "per_device_train_batch_size": 1,
            "max_steps": 6,
            "learning_rate": 1e-3,
            "warmup_steps": 2,
        }
        return SftFlags(**{**values, **changes})

    return make


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    """A folder whose rows are whole blocks of 32."""
    from tests.llama.quantized_models import of_blocks

    return of_blocks(tmp_path_factory.mktemp("blocks"))


@pytest.fixture(scope="module")
def mixed(blocks, tmp_path_factory):
    """The same as a GGUF file, with codes of several types."""
    from tests.llama.quantized_models import mixed_types

    return mixed_types(tmp_path_factory.mktemp("mixed"), blocks)


@pytest.fixture(scope="module")
def no_nohup():
    """The suite may run under nohup, whose SIGHUP a process leaves ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)

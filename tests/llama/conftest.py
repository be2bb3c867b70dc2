"""A small model folder, made once: random weights and a tokenizer trained on the shipped data."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.llama2_13b.create import CreateFlags, create
from examples.llama2_13b.sft import SftFlags
from examples.llama2_13b.train import metrics

EXAMPLE = Path(__file__).parents[2] / "examples" / "llama2_13b"
DATA = EXAMPLE / "texts"


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    create(CreateFlags(str(EXAMPLE / "configs" / "tiny.json"), str(DATA), str(folder)))
    return folder


@pytest.fixture
def no_measuring(monkeypatch):
    """Half a second less for each run."""
    monkeypatch.setattr(metrics, "measure_peak_flops", lambda dtype: 1e11)


@pytest.fixture
def sft_flags(tiny_folder, tmp_path):
    """Flags of a short run, with changes."""

    def make(**changes):
        values = {
            "model_name_or_path": str(tiny_folder),
            "dataset_name_or_path": str(DATA),
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

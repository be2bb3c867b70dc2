"""No padding token is needed: nothing that is computed depends on what fills a row's end."""

from __future__ import annotations

import json
import shutil

import numpy as np
import paddle
import pytest

import fusionkit as fk
from examples.llama2_13b.data.packing import collate
from examples.llama2_13b.data.samples import IGNORED, Sample
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.model import Llama
from examples.llama2_13b.sft import sft
from examples.llama2_13b.train.metrics import read_log

SIZES = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
         "num_attention_heads": 2, "max_position_embeddings": 32, "rms_norm_eps": 1e-5}  # fmt: skip
ROWS = [
    [Sample(list(range(3, 9)), [IGNORED, *range(10, 15)]), Sample([21, 22, 23], [22, 23, 2])],
    [Sample([31], [2])],
]


def run(fill, length, backend):
    """The loss and every gradient."""
    paddle.seed(3)
    with fk.use_backend(backend):
        model = Llama(LlamaConfig(**SIZES))
        batch = collate(ROWS, fill, length)
        arrays = (batch.input_ids, batch.labels, batch.position_ids, batch.startend_row_indices)
        fk.ledger().reset()
        loss, _ = model.loss(*map(paddle.to_tensor, arrays))
        loss.backward()
        assert {used for _, used, _ in fk.ledger()} == {backend}
    return {"loss": loss.numpy(), **{name: one.grad.numpy() for name, one in model.named_parameters()}}


@pytest.mark.parametrize("backend", ["cpu"])
@pytest.mark.parametrize("length", [None, 12, 17])
def test_losses_and_gradients_do_not_depend_on_what_fills_a_row(length, backend):
    expected = run(0, length, backend)
    assert any(array.any() for array in expected.values())
    for fill in (None, 1, 2, 7, 31):
        found = run(fill, length, backend)
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, err_msg=f"{name}, filled with {fill}")


@pytest.mark.parametrize("fields", [{}, {"pad_token_id": None}, {"pad_token_id": -1}])
def test_files_say_in_three_ways_that_there_is_no_padding_token(tmp_path, fields):
    (tmp_path / "config.json").write_text(json.dumps({**SIZES, **fields}))
    config = LlamaConfig.from_json(tmp_path / "config.json")
    assert config.pad_token_id is None and config.to_dict()["pad_token_id"] is None
    assert (config.bos_token_id, config.eos_token_id) == (1, 2)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"pad_token_id": 32}, "pad_token_id must be at least 0 and below vocab_size 32, or null.*got 32"),
        ({"pad_token_id": -2}, "pad_token_id must be .*got -2"),
        ({"pad_token_id": "<pad>"}, "pad_token_id must be an integer"),
        ({"bos_token_id": -1}, "bos_token_id must be at least 0 and below vocab_size 32, got -1"),
        ({"eos_token_id": None}, "eos_token_id must be an integer, got null"),
    ],
)
def test_ids_without_a_row_are_refused(tmp_path, fields, words):
    (tmp_path / "config.json").write_text(json.dumps({**SIZES, **fields}))
    with pytest.raises(ValueError, match=f"config.json: .*{words}"):
        LlamaConfig.from_json(tmp_path / "config.json")


def test_a_run_is_the_same_without_a_padding_token(sft_flags, tiny_folder, tmp_path):
    logs = []
    for name, pad in (("zero", 0), ("none", None), ("other", 77)):
        folder = shutil.copytree(tiny_folder, tmp_path / name)
        config = json.loads((folder / "config.json").read_text()) | {"pad_token_id": pad}
        (folder / "config.json").write_text(json.dumps(config))
        output = tmp_path / f"run_{name}"
        sft(sft_flags(model_name_or_path=str(folder), output_dir=str(output), zero_padding=False,
                      per_device_train_batch_size=4, max_steps=3))  # fmt: skip
        logs.append([line["loss"] for line in read_log(output / "log.jsonl")])
        assert json.loads((output / "config.json").read_text())["pad_token_id"] == pad
    assert logs[0] == logs[1] == logs[2]

"""Model folders: what is read, what is refused by name, and that nothing is lost while saving."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import paddle
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from examples.llama2_13b.create import CreateFlags, create
from examples.llama2_13b.data.tokenizer import Tokenizer
from examples.llama2_13b.folders import checkpoint
from examples.llama2_13b.folders.layout import elements
from examples.llama2_13b.io import atomic
from examples.llama2_13b.model import Llama
from examples.llama2_13b.parallel.tensor_parallel import TensorParallel
from tests.llama.conftest import DATA, EXAMPLE
from tests.llama.test_model import SIZES

SHARD_BYTES = 40_000  # nine shards of the small model
INDEX = "model.safetensors.index.json"


def make_model(seed=0):
    paddle.seed(seed)
    return Llama(dataclasses.replace(SIZES, num_key_value_heads=2))


def weights(model):
    return {name: parameter.numpy() for name, parameter in model.named_parameters()}


def assert_same(model, expected):
    for name, value in weights(model).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    model = make_model()
    checkpoint.save(model, folder, SHARD_BYTES)
    return folder, weights(model)


@pytest.fixture
def folder(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_shards_and_index_are_read_back_bit_by_bit(saved):
    folder, expected = saved
    shards = sorted(path.name for path in folder.glob("model-*.safetensors"))
    assert shards == [f"model-0000{number}-of-00009.safetensors" for number in range(1, 10)]
    index = json.loads((folder / INDEX).read_text())
    assert set(index["weight_map"].values()) == set(shards)
    assert_same(Llama.from_pretrained(folder), expected)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_one_file_of_another_dtype_is_read(folder, saved, dtype):
    tensors = {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}
    for path in [*folder.glob("*.safetensors"), folder / INDEX]:
        path.unlink()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    save_file({name: value.astype(dtype) for name, value in tensors.items()}, folder / "model.safetensors")
    expected = {name: value.astype(dtype).astype(np.float32) for name, value in saved[1].items()}
    assert_same(Llama.from_pretrained(folder), expected)


def rewrite(folder, change):
    """Change the tensors of the last shard."""
    path = folder / "model-00009-of-00009.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_a_truncated_shard_is_named(folder):
    path = folder / "model-00003-of-00009.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="model-00003-of-00009.safetensors: truncated"):
        Llama.from_pretrained(folder)


def test_a_missing_shard_is_named(folder):
    (folder / "model-00003-of-00009.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model-00003-of-00009.safetensors: not found"):
        Llama.from_pretrained(folder)


def test_a_missing_tensor_is_named(folder):
    rewrite(folder, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(ValueError, match="lm_head.weight must be there"):
        Llama.from_pretrained(folder)


def test_a_tensor_without_a_place_is_named(folder):
    rewrite(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": np.ones(48, np.float32)}))
    with pytest.raises(ValueError, match="q_proj.bias must not be there"):
        Llama.from_pretrained(folder)


def test_a_wrong_shape_is_named(folder):
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": np.ones((96, 48), np.float32)}))
    with pytest.raises(ValueError, match=r"lm_head.weight must be \[97, 48\], got \[96, 48\]"):
        Llama.from_pretrained(folder)


def test_an_integer_tensor_is_named(folder):
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": np.ones((97, 48), np.int8)}))
    with pytest.raises(ValueError, match="lm_head.weight must be F64, F32, F16, BF16, F8_E4M3, F8_E5M2, got I8"):
        Llama.from_pretrained(folder)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_a_broken_index_is_named(folder, content):
    (folder / INDEX).write_text(content)
    with pytest.raises(ValueError, match=f"{INDEX}: must be JSON with a weight_map"):
        Llama.from_pretrained(folder)


def test_a_folder_without_weights_is_named(folder):
    (folder / INDEX).unlink()
    with pytest.raises(FileNotFoundError, match=f"neither {INDEX} nor model.safetensors is there"):
        Llama.from_pretrained(folder)


def test_a_folder_without_configuration_is_named(folder):
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="config.json: not found"):
        Llama.from_pretrained(folder)


def save_as_transformers(folder, model, **options):
    """Into a folder that may hold another model."""
    with tempfile.TemporaryDirectory() as other:
        model.save_pretrained(other)
        theirs = transformers.LlamaForCausalLM.from_pretrained(other, dtype=torch.float32)
        theirs.save_pretrained(folder, **options)


@pytest.mark.parametrize("saves", [1, 2])  # the second time our shards have other names
def test_transformers_saving_one_file_over_our_shards_is_refused(folder, saves):
    checkpoint.save(make_model(), folder, 10**9)
    if saves == 2:
        checkpoint.save(make_model(), folder, 10**9)
    model = make_model(seed=1)
    save_as_transformers(folder, model)
    with pytest.raises(
        ValueError, match=rf"one model must be there, got two: {INDEX} .* and model.safetensors .*Delete"
    ):
        Llama.from_pretrained(folder)
    (folder / INDEX).unlink()
    assert_same(Llama.from_pretrained(folder), weights(model))


def test_transformers_shards_over_ours_are_read(folder):
    checkpoint.save(make_model(), folder, SHARD_BYTES)
    model = make_model(seed=1)
    save_as_transformers(folder, model, max_shard_size=3 * SHARD_BYTES)
    assert_same(Llama.from_pretrained(folder), weights(model))


@pytest.mark.parametrize("options", [{}, {"max_shard_size": SHARD_BYTES}], ids=["one-file", "shards"])
def test_our_save_over_transformers_leaves_nothing_of_it(tmp_path, options):
    save_as_transformers(tmp_path, make_model(), **options)
    kept = ["model-best.safetensors", "thesis.bin"]
    stale = ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"]
    stale += ["model_state.pdparams", "adapter_config.json", "adapter_model.safetensors"]
    for name in kept + stale:
        (tmp_path / name).write_bytes(b"")
    model = make_model(seed=1)
    checkpoint.save(model, tmp_path, 2 * SHARD_BYTES)
    listed = set(json.loads((tmp_path / INDEX).read_text())["weight_map"].values())
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".json"} == listed | set(kept)
    assert_same(Llama.from_pretrained(tmp_path), weights(model))
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    np.testing.assert_array_equal(theirs.lm_head.weight.numpy(force=True), weights(model)["lm_head.weight"].T)


def test_our_save_removes_what_the_older_index_names(folder):
    index = json.loads((folder / INDEX).read_text())
    for number, name in enumerate(sorted(set(index["weight_map"].values()))):
        (folder / name).rename(folder / f"part{number}.safetensors")
        index["weight_map"] = {
            k: f"part{number}.safetensors" if v == name else v for k, v in index["weight_map"].items()
        }
    outside = folder.parent / f"{folder.name}.safetensors"
    outside.write_bytes(b"")
    index["weight_map"]["x"] = f"../{outside.name}"
    (folder / INDEX).write_text(json.dumps(index))
    checkpoint.save(make_model(), folder)
    assert [path.name for path in folder.glob("*.safetensors")] == ["model-00001-of-00001.safetensors"]
    outside.unlink()  # it is still there


def test_an_index_of_one_file_is_no_second_model(folder, saved):
    tensors = {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "model.safetensors")}))
    assert_same(Llama.from_pretrained(folder), saved[1])


def test_a_shard_of_another_save_is_named(folder):
    shutil.copy(folder / "model-00001-of-00009.safetensors", folder / "model-00003-of-00009.safetensors")
    with pytest.raises(ValueError, match="model-00003.*: .* must be only in model-00001.*two saves"):
        Llama.from_pretrained(folder)


def test_weights_that_are_not_read_are_named(folder, saved, capsys):
    stray = ["model-00001-of-00009.1.safetensors", "model-00001-of-00002.safetensors"]  # a killed save, another model
    for name in [*stray, "pytorch_model.bin"]:
        (folder / name).write_bytes(b"")
    assert_same(Llama.from_pretrained(folder), saved[1])
    assert f"read is {INDEX}, not {', '.join(sorted(stray))}, pytorch_model.bin\n" in capsys.readouterr().err
    checkpoint.save(make_model(), folder, SHARD_BYTES)
    Llama.from_pretrained(folder)
    assert capsys.readouterr().err == ""


def write_with_format(folder, metadata, transposed):
    """The weights of `saved` in one file, linear ones transposed."""
    tensors = {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}
    for path in [*folder.glob("*.safetensors"), folder / INDEX]:
        path.unlink()
    linear = [name for name in tensors if "_proj" in name or name == "lm_head.weight"]
    tensors |= {name: np.ascontiguousarray(tensors[name].T) for name in linear if transposed}
    save_file(tensors, folder / "model.safetensors", metadata)


def test_a_folder_of_paddlenlp_is_read(folder, saved):
    write_with_format(folder, {"format": "np"}, transposed=True)
    tensors = load_file(folder / "model.safetensors")
    theirs = {name.replace("model.", "llama.", 1): value for name, value in tensors.items()}
    save_file(theirs, folder / "model.safetensors", {"format": "np"})
    assert_same(Llama.from_pretrained(folder), saved[1])
    assert checkpoint.Reader(folder, make_model().table).dtypes() == dict.fromkeys(tensors, "F32")


@pytest.mark.parametrize("layout", ["np", "pd", "paddle"])
def test_paddles_layout_is_read_by_its_metadata(folder, saved, layout):
    write_with_format(folder, {"format": layout}, transposed=True)
    assert_same(Llama.from_pretrained(folder), saved[1])


def test_square_weights_in_paddles_layout_are_not_taken_for_the_other(tmp_path):
    config = dataclasses.replace(SIZES, vocab_size=48, intermediate_size=48, eos_token_id=2)
    paddle.seed(0)
    model = Llama(config)
    checkpoint.save(model, tmp_path)
    write_with_format(tmp_path, {"format": "np"}, transposed=True)
    assert_same(Llama.from_pretrained(tmp_path), weights(model))


def test_tensor_parallel_ranks_read_their_part_of_paddles_layout(folder):
    table = make_model().table
    ranks = [TensorParallel(SimpleNamespace(rank=rank, world_size=2)) for rank in range(2)]

    def parts():
        readers = [checkpoint.Reader(folder, table, shards=shards) for shards in ranks]
        return [reader.read(name) for name in table for reader in readers]

    expected = parts()
    write_with_format(folder, {"format": "np"}, transposed=True)
    for got, want in zip(parts(), expected, strict=True):
        np.testing.assert_array_equal(got, want)


def save_tied(folder, layout="pt", head=None):
    """A tied model in one file, with the head a second time if it is given as [vocab_size, hidden_size]."""
    paddle.seed(0)
    model = Llama(dataclasses.replace(SIZES, tie_word_embeddings=True))
    checkpoint.save(model, folder)
    write_with_format(folder, {"format": layout}, transposed=layout != "pt")
    tensors = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in tensors and "model.embed_tokens.weight" in tensors
    if head is not None:
        copy = tensors["model.embed_tokens.weight"] + np.float32(head)
        tensors["lm_head.weight"] = np.ascontiguousarray(copy if layout == "pt" else copy.T)
        save_file(tensors, folder / "model.safetensors", {"format": layout})
    return model


@pytest.mark.parametrize("layout", ["pt", "np"])
@pytest.mark.parametrize("head", [None, 0], ids=["once", "twice"])
def test_a_tied_embedding_is_read_from_folders_with_the_head_and_without(tmp_path, layout, head):
    model = save_tied(tmp_path, layout, head)
    read = Llama.from_pretrained(tmp_path)
    assert_same(read, weights(model))
    ids = paddle.to_tensor([[1, 2, 3]])
    np.testing.assert_array_equal(read(ids).numpy(), model(ids).numpy())
    again = tmp_path / "again"
    read.save_pretrained(again)
    stored = [name for path in again.glob("*.safetensors") for name in load_file(path)]
    assert sorted(stored) == sorted(elements(model.table))
    theirs = transformers.LlamaForCausalLM.from_pretrained(again)
    np.testing.assert_array_equal(theirs.lm_head.weight.numpy(force=True), weights(model)["lm_head.weight"].T)


def test_a_tied_embedding_beside_another_head_is_refused(tmp_path):
    save_tied(tmp_path, head=1)
    with pytest.raises(ValueError, match="lm_head.weight must equal model.embed_tokens.weight, got another tensor"):
        Llama.from_pretrained(tmp_path)


@pytest.mark.parametrize("metadata, transposed", [({"format": "np"}, False), ({"format": "pt"}, True), (None, True)])
def test_weights_in_another_layout_than_the_metadata_says_are_named(folder, metadata, transposed):
    write_with_format(folder, metadata, transposed)
    with pytest.raises(ValueError, match=r"model.safetensors: .*_proj.weight must be \[\d+, \d+\], got"):
        Llama.from_pretrained(folder)


@pytest.mark.parametrize("layout", ["flax", "tf", ""])
def test_a_layout_that_nobody_knows_is_refused(folder, layout):
    write_with_format(folder, {"format": layout}, transposed=False)
    with pytest.raises(ValueError, match=f"format in its metadata must be pt, .*got '{layout}'"):
        Llama.from_pretrained(folder)


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_every_file_has_the_mode_of_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        make_model().save_pretrained(tmp_path / "model")
    finally:
        os.umask(before)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (tmp_path / "model").iterdir()}
    assert set(modes.values()) == {oct(mode)}, modes


def test_saving_again_replaces_every_file(folder):
    model = make_model(seed=1)
    checkpoint.save(model, folder, 2 * SHARD_BYTES)
    checkpoint.save(model, folder, 2 * SHARD_BYTES)
    listed = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
    assert listed == {path.name for path in folder.glob("*.safetensors")}
    assert_same(Llama.from_pretrained(folder), weights(model))
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder)
    np.testing.assert_array_equal(theirs.lm_head.weight.numpy(force=True), weights(model)["lm_head.weight"].T)


def test_a_full_disk_leaves_the_previous_model_whole(folder, saved):
    before = sorted(os.listdir(folder))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SHARD_BYTES // 2, hard))  # writing past it fails as on a full disk
    try:
        with pytest.raises(OSError, match="cannot be written"):
            checkpoint.save(make_model(seed=1), folder, SHARD_BYTES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(os.listdir(folder)) == before
    assert_same(Llama.from_pretrained(folder), saved[1])


SAVE_FOREVER = """
import sys
import paddle
from examples.llama2_13b.folders import checkpoint
from examples.llama2_13b.create import CreateFlags, create
from tests.llama.test_checkpoint import SHARD_BYTES, make_model
first, second = make_model(1), make_model(2)
while True:
    for model in (first, second):
        checkpoint.save(model, sys.argv[1], SHARD_BYTES)
        print("saved", flush=True)
"""


def test_a_kill_while_saving_leaves_a_whole_model(folder):
    candidates = [weights(make_model(seed)) for seed in (1, 2)]
    for delay in (0.0, 0.007):
        command = [sys.executable, "-c", SAVE_FOREVER, str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"saved\n"
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        found = weights(Llama.from_pretrained(folder))
        assert any(all(np.array_equal(found[name], one[name]) for name in one) for one in candidates)


def test_a_trained_tokenizer_encodes_every_script_and_transformers_reads_it(tiny_folder):
    tokenizer = Tokenizer.from_pretrained(tiny_folder)
    theirs = transformers.AutoTokenizer.from_pretrained(tiny_folder)
    for text in ("类型#裙*颜色#蓝", "A teapot, 1.2 l!", "naïve ✨ Ωmega\n\ttab", "", " </s> "):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.eos_token_id not in ids
        if "</s>" not in text:
            assert theirs(text, add_special_tokens=False)["input_ids"] == ids
    assert tokenizer.encode("</s>", special=True) == [tokenizer.eos_token_id] == [theirs.eos_token_id]


@pytest.mark.parametrize(
    "change, words",
    [({"vocab_size": 258}, "vocab_size must be at least 259"), ({"bos_token_id": 5}, "must be 0, 1 and 2")],
)
def test_a_configuration_without_room_for_the_tokenizer_is_refused(tmp_path, change, words):
    fields = json.loads((EXAMPLE / "configs" / "tiny.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=words):
        create(CreateFlags(str(tmp_path / "config.json"), str(DATA), str(tmp_path / "new")))
    assert not (tmp_path / "new").exists()


def test_a_new_model_does_not_replace_an_old_one(tiny_folder):
    before = {path: path.read_bytes() for path in tiny_folder.iterdir()}
    with pytest.raises(ValueError, match="--output_dir must hold no model yet"):
        create(CreateFlags(str(EXAMPLE / "configs" / "tiny.json"), str(DATA), str(tiny_folder), seed=1))
    assert before == {path: path.read_bytes() for path in tiny_folder.iterdir()}


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path, dirs_exist_ok=True)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, "vocab_size": 500}))
    with pytest.raises(ValueError, match="tokenizer.json: must be of at most 500 tokens"):
        Tokenizer.from_pretrained(tmp_path)


def test_a_folder_without_a_tokenizer_is_refused_with_a_way_out(tiny_folder, tmp_path):
    shutil.copy(tiny_folder / "config.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"tokenizer.json: not found.*save_pretrained"):
        Tokenizer.from_pretrained(tmp_path)


def test_an_old_folder_comes_back_when_the_new_one_cannot_take_its_name(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoint"
    with atomic.new_folder(folder) as new:
        (new / "weights").write_text("old")
    rename = os.rename

    def refuse(source, target):
        if str(source).endswith(".saving"):
            raise OSError("no space left")
        rename(source, target)

    monkeypatch.setattr(atomic.os, "rename", refuse)
    with pytest.raises(OSError, match="no space left"), atomic.new_folder(folder) as new:
        (new / "weights").write_text("new")
    assert (folder / "weights").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["checkpoint"]

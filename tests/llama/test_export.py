"""What export writes, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil

import pytest

from examples.llama2_13b import export as exporting
from examples.llama2_13b.data.tokenizer import Tokenizer
from examples.llama2_13b.export import ExportFlags, export
from examples.llama2_13b.folders.config import LlamaConfig


@pytest.fixture
def model_folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "model")


def test_the_folder_needs_no_other(tiny_folder, tmp_path):
    output = tmp_path / "exported"
    assert export(ExportFlags(str(tiny_folder), str(output))) == 0
    assert LlamaConfig.from_json(output / "config.json") == LlamaConfig.from_json(tiny_folder / "config.json")
    assert Tokenizer.from_pretrained(output).files.keys() > Tokenizer.from_pretrained(tiny_folder).files.keys()
    names = {"config.json", "generation_config.json", "model.json", "model.pdiparams", "model.sizes"}
    assert {path.name for path in output.iterdir()} == names | {"tokenizer.json", "tokenizer_config.json"}


def test_the_program_holds_the_neutral_ops_and_no_composition(tiny_folder, tmp_path):
    export(ExportFlags(str(tiny_folder), str(tmp_path / "exported")))
    program = (tmp_path / "exported" / "model.json").read_text()
    ops = set(re.findall(r'"#":"\d+\.(\w+)"', program))
    expected = {"fusion_rms_norm", "fusion_add_rms_norm", "fusion_rope", "paged_attention_", "swiglu", "fused_linear"}
    assert {op for op in ops if op.startswith("fusionkit_")} == {f"fusionkit_{op}" for op in expected}
    assert not ops & {"matmul", "softmax", "silu", "multiply", "rsqrt", "add"}


def test_matrices_are_stored_in_the_dtype_of_arithmetic(tiny_folder, tmp_path):
    sizes = {}
    for dtype in ("float32", "bfloat16", "float16"):
        export(ExportFlags(str(tiny_folder), str(tmp_path / dtype), dtype))
        assert json.loads((tmp_path / dtype / "config.json").read_text())["torch_dtype"] == dtype
        sizes[dtype] = (tmp_path / dtype / "model.pdiparams").stat().st_size
    config = LlamaConfig.from_json(tiny_folder / "config.json")
    rope = 2 * 4 * config.max_position_embeddings * config.head_dim // 2  # cos and sin stay float32
    assert sizes["bfloat16"] - rope < 0.52 * (sizes["float32"] - rope)
    assert sizes["float16"] == sizes["bfloat16"]


def test_a_chat_template_goes_along(model_folder, tmp_path):
    (model_folder / "chat_template.json").write_text('{"system": "", "conversation": ["{{user}}", "{{bot}}"]}')
    export(ExportFlags(str(model_folder), str(tmp_path / "exported")))
    assert (tmp_path / "exported" / "chat_template.json").exists()


def test_a_folder_with_something_else_is_not_replaced(tiny_folder, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="--output_path must be empty or an older export"):
        export(ExportFlags(str(tiny_folder), str(tmp_path)))
    with pytest.raises(ValueError, match="--output_path must be a folder, got the file"):
        export(ExportFlags(str(tiny_folder), str(tmp_path / "thesis.txt")))
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_an_export_that_fails_leaves_the_older_one_whole(tiny_folder, tmp_path, monkeypatch):
    output = tmp_path / "exported"
    export(ExportFlags(str(tiny_folder), str(output)))
    before = {path.name: path.read_bytes() for path in output.iterdir()}

    def disk_full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting.passes, "export", disk_full)
    with pytest.raises(OSError, match="No space left"):
        export(ExportFlags(str(tiny_folder), str(output), "bfloat16"))
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]


@pytest.mark.parametrize("limit", [30_000, 60_000, 300_000])  # the tokenizer fits; then the program, not the weights
def test_a_limit_on_the_size_of_files_is_an_error(tiny_folder, tmp_path, limit):
    output = tmp_path / "exported"
    export(ExportFlags(str(tiny_folder), str(output)))
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(
            OSError, match=r"export: model.(json|pdiparams) must be .*the disk is full or takes no larger"
        ):
            export(ExportFlags(str(tiny_folder), str(output)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]


def test_every_exported_file_has_the_mode_of_the_umask(tiny_folder, tmp_path):
    before = os.umask(0o027)
    try:
        export(ExportFlags(str(tiny_folder), str(tmp_path / "exported")))
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "exported").iterdir()} == {"0o640"}
    assert (tmp_path / "exported").stat().st_mode & 0o777 == 0o750


def test_bad_flags_and_folders_are_errors(tiny_folder, tmp_path):
    with pytest.raises(ValueError, match="--dtype must be float32 or bfloat16 or float16, got 'int8'"):
        ExportFlags(str(tiny_folder), str(tmp_path / "exported"), "int8")
    with pytest.raises(FileNotFoundError, match="config.json"):
        export(ExportFlags(str(tmp_path / "nothing"), str(tmp_path / "exported")))
    assert not (tmp_path / "exported").exists()

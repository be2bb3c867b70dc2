"""A file that cannot be written is told before the work, and one that is there keeps its content until the answer."""

from __future__ import annotations

from pathlib import Path

import pytest
from fusionkit_planner import result_files, search

from fusionkit.cli import main
from tests.prose import ROOT

CONFIG = str(ROOT / "examples/llama2_13b/configs/llama2_13b.json")
ROWS = str(Path(__file__).with_name("korthikanti.csv"))
COMMANDS = {
    "train": (["train", "--device", "910b", "--model", CONFIG], ["--json", "--chart", "--write"]),
    "validate": (["validate", "--fit", ROWS, "--judge", ROWS], ["--json"]),
    "probe": (["probe"], ["--json"]),
    "mc2": (["mc2", "--device", "910b"], ["--json", "--chart"]),
}
BAD = {"folder": "Is a directory", "file/x": "Not a directory", "/proc/x": "No such file or directory"}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("bad", BAD)
def test_a_file_that_cannot_be_written_is_told_before_the_work(command, bad, tmp_path, monkeypatch, capsys):
    from fusionkit_planner import probe, report
    from fusionkit_planner.validate import rows

    for work in ((search, "search"), (rows, "read"), (probe, "probe"), (report, "text")):
        monkeypatch.setattr(*work, None)  # none of them is called
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    words, options = COMMANDS[command]
    for option in options:
        assert main(["plan", *words, option, str(tmp_path / bad)]) == 2
        error = capsys.readouterr().err
        assert f"{option} must be a file that can be written, got '{tmp_path / bad}'; {BAD[bad]}. Name" in error


def test_the_check_leaves_files_and_folders_as_they_are(tmp_path):
    old = tmp_path / "old.json"
    old.write_text("content")
    result_files.require_writable("who", json=old, chart=tmp_path / "a" / "b" / "new.png", write=None)
    assert list(tmp_path.iterdir()) == [old] and old.read_text() == "content"


def test_an_old_file_keeps_its_content_where_nothing_fits(tmp_path, capsys):
    old = tmp_path / "flags.json"
    old.write_text("content")
    options = ["--memory", "4", "--global-batch", "8", "--write", str(old)]
    assert main(["plan", *COMMANDS["train"][0], *options]) == 2
    assert "--memory must be at least" in capsys.readouterr().err and old.read_text() == "content"

"""The example's rooms know only the rooms before them; the commands stand above."""

from __future__ import annotations

import ast

import pytest

from tests.llama.conftest import EXAMPLE

PACKAGE = "examples.llama2_13b"
KNOWS = {
    "io": (),
    "parallel": ("io",),
    "folders": ("io", "parallel"),
    "model": ("parallel", "folders"),
    "data": ("io", "folders"),
    "train": ("io", "parallel", "folders", "model", "data"),
    "generate": ("io", "folders", "model", "data"),
    "serving": ("io", "folders", "data", "generate"),
    "bench": ("io", "parallel", "folders", "model", "data", "train", "generate"),
    "bench/decode": ("bench", "io", "folders", "data", "generate"),
}
COMMANDS = {
    "create": {"io", "folders", "model", "data"},
    "tokenize_texts": {"io", "folders", "data"},
    "sft": {"io", "parallel", "data", "train"},
    "pretrain": {"io", "parallel", "folders", "data", "train"},
    "lora": {"io", "parallel", "folders", "model", "train", "sft"},
    "supervise": {"io"},
    "merge": {"io", "folders", "data"},
    "quantize": {"io", "folders", "data"},
    "export": {"io", "folders", "model", "data", "generate"},
    "predict": {"io", "folders", "data", "generate"},
    "serve": {"io", "folders", "model", "generate", "serving", "export"},
    "demo": {"io", "data", "train", "generate", "create", "sft", "export", "predict"},
}


def rooms_of(file):
    """The rooms that a file imports from, wherever the import stands; a command is its own name."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.level or node.module == "examples"):
            raise AssertionError(f"{file} must import from {PACKAGE} by its whole name")
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
            first, *rest = f"{node.module}.".removeprefix(f"{PACKAGE}.").split(".")
            found |= {first} if first else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[2] for alias in node.names if alias.name.startswith(f"{PACKAGE}.")}
    return found


def files(room):
    return sorted((EXAMPLE / room).glob("*.py"))


@pytest.mark.parametrize("room", KNOWS)
def test_a_room_knows_only_the_rooms_before_it(room):
    assert files(room)
    for file in files(room):
        assert rooms_of(file) <= {room, *KNOWS[room]}, file


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_knows_what_it_needs(command):
    assert rooms_of(EXAMPLE / f"{command}.py") == COMMANDS[command]


def test_the_page_lists_every_room_and_file():
    """Every folder with code is a room above, and the page lists the files of each."""
    assert {str(path.parent.relative_to(EXAMPLE)) for path in EXAMPLE.rglob("*/*.py")} == set(KNOWS)
    assert {path.stem for path in EXAMPLE.glob("*.py")} - {"__init__", "repository"} == set(COMMANDS)
    page = (EXAMPLE / "README.md").read_text()
    for room in KNOWS:
        listed = page.partition(f"\n{room}/ ")[2].partition("\n\n")[0]
        names = {line.split()[0] for line in listed.splitlines()[1:]}
        assert names == {file.name for file in files(room)} - {"__init__.py"}, room
